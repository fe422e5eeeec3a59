"""Canary: the pure statistics that decide a student's fate."""
