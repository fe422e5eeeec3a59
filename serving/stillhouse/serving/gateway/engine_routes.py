"""Which engine serves a route's students."""

from stillhouse.sdk.config import Config
from stillhouse.serving.gateway.engine import HttpEngine
from stillhouse.serving.routes import RouteSettings


def engines(config: Config) -> dict[str, HttpEngine]:
    """The engine of each route that names one; routes with one address share it, so it is watched and attested once."""
    by_url: dict[str, HttpEngine] = {}
    found = {}
    for name, settings in config.sections("routes", RouteSettings).items():
        if settings.engine_url:
            url = settings.engine_url.rstrip("/").removesuffix("/v1")
            found[name] = by_url.setdefault(url, HttpEngine(url, config.state_dir("students")))
    return found
