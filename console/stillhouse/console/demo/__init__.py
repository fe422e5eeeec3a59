"""The demo: the whole loop on the order desk, and the report at its end."""
