"""The gateway: an OpenAI-compatible front of the teacher and of the students. Never imports torch."""
