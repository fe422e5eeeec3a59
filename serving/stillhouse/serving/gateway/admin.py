"""The admin port: metrics, health, and what each route serves and has spent."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from stillhouse.schemas.assign import Arm
from stillhouse.serving.gateway.assignment import shares_of
from stillhouse.serving.gateway.desk import Desk, Route


def admin_application(desk: Desk, waits: Callable[[], str]) -> web.Application:
    """The application.

    Args:
        desk: the gateway's parts.
        waits: why it is not ready; empty when it is.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=desk.instruments.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def ready(_: web.Request) -> web.Response:
        reason = "draining" if desk.draining else waits()
        return web.json_response({"ok": not reason, "waits": reason}, status=503 if reason else 200)

    async def routes(_: web.Request) -> web.Response:
        return web.json_response({"routes": {name: _route(desk, route) for name, route in desk.routes.items()}})

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", alive), web.get("/readyz", ready), web.get("/v1/routes", routes)])
    return app


def _route(desk: Desk, route: Route) -> dict[str, Any]:
    state, settings = desk.state(route), route.settings
    shares = shares_of(state, settings.holdback)
    served = {name: route.engine is not None and route.engine.ready(name) for name in (state.champion, state.canary) if name}
    names = ("experiment", "arm", "epoch", "trajectories")
    return {
        "teacher": settings.teacher_model,
        "champion": state.champion,
        "canary": state.canary,
        "share": state.share,
        "stage_index": state.stage_index,
        "paused": state.paused,
        "experiment": state.experiment,
        "epoch": state.epoch,
        "offset": state.offset,
        "shares": {arm.value: shares.of(arm) for arm in Arm} | {"holdback": shares.holdback},
        "ready": served,
        "capture_only": not settings.outcome_sources,
        "arms": [dict(zip(names, row[1:], strict=True)) for row in desk.memory.arms() if row[0] == route.name],
        "ledger": [line for line in desk.memory.ledger() if line["route"] == route.name],
    }
