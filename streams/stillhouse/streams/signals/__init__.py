"""Signals: facts in, window requests and teacher tasks out."""
