"""The trainer in the background: it looks whether a window is due, and runs it in a process of its own, one at a time."""
