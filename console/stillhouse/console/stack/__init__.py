"""The local stack: every process of Stillhouse on one machine, supervised."""
