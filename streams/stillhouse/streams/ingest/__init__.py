"""Ingest: from events on Kafka to scored rows in the store. The order of its steps is `docs/ingest.md`."""
