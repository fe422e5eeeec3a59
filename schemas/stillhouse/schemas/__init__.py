"""Contracts that every plane shares: events, messages, render, tables, topics, metric names."""
