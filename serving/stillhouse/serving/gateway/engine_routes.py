"""Which engine serves a route's students."""

from stillhouse.sdk.config import Config
from stillhouse.sdk.routes import RouteSettings
from stillhouse.serving.gateway.engine import HttpEngine


def engines(config: Config, default: str = "") -> dict[str, HttpEngine]:
    """The engine of each route that has one; routes with one address share it, so it is watched and attested once.

    Args:
        config: with the routes.
        default: the engine of routes that name none; empty: they have none.
    """
    by_url: dict[str, HttpEngine] = {}
    found = {}
    for name, settings in config.sections("routes", RouteSettings).items():
        if address := settings.engine_url or default:
            url = address.rstrip("/").removesuffix("/v1")
            found[name] = by_url.setdefault(url, HttpEngine(url, config.state_dir("students")))
    return found
