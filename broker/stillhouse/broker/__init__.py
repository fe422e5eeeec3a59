"""The embedded broker: speaks Kafka's protocol, for laptops, demos and tests only."""
