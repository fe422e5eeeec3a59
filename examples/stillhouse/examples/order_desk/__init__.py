"""The order desk: a small, deterministic, verified customer-service environment."""
