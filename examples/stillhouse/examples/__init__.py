"""Runnable examples; the order desk is the environment of the demo."""
