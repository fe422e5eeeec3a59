"""The local student server: OpenAI-compatible, adapters loaded at run time."""
