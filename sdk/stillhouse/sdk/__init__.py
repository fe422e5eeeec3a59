"""The client SDK for agents: events out, never in the way."""
