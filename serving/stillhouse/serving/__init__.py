"""Serving: the student server, later the gateway and the canary controller."""
