"""Asks the teacher what it would have done where a student failed and nothing may be executed."""
