"""Evaluation: policies run in an environment, measured with intervals, gated per family, priced."""
