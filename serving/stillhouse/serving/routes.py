"""What a route says. Its section is read by signals too, which asks the same teacher: so it lives in the SDK."""

from stillhouse.sdk.routes import RouteSettings

__all__ = ["RouteSettings"]
