"""What each route serves, and what its canary waits for: asked of the gateway and of the controller that run."""

import json
import urllib.request
from typing import Any

from stillhouse.console.stack.record import StackRecord

SECONDS = 2.0
Fields = dict[str, Any]


def routes_of(record: StackRecord) -> Fields:
    """By route: champion, canary with its share, whether they are ready to answer, runs by arm, money by variant, what is waited for.

    A process that does not answer is said, not raised.
    """
    if record.admin is None:
        return {}
    try:
        served = read_routes(record.admin)
    except OSError as error:
        return _away(record.admin, error)
    controller = record.metrics.get("canary", "").removesuffix("/metrics")
    waits = _waits(controller) if controller else {}
    return {name: _route(found, waits.get(name)) for name, found in served.items()}


def read_routes(admin: str) -> Fields:
    """What the gateway says of each route, by its name.

    Args:
        admin: the address of its admin port.

    Raises:
        OSError: it does not answer.
    """
    return dict(_read(f"{admin}/v1/routes")["routes"])


def spent_usd(found: Fields) -> dict[str, float]:
    """What a route has spent, in US dollars, by who answered."""
    spent: dict[str, float] = {}
    for line in found["ledger"]:
        spent[line["variant"]] = spent.get(line["variant"], 0.0) + line["cost_micro_usd"] / 1e6
    return spent


def _route(found: Fields, waits: str | None) -> Fields:
    runs: dict[str, int] = {}
    for arm in found["arms"]:
        runs[arm["arm"]] = runs.get(arm["arm"], 0) + arm["trajectories"]
    return {
        "champion": found["champion"],
        "canary": found["canary"],
        "share": found["share"],
        "paused": found["paused"],
        "ready": found["ready"],
        "runs": runs,
        "spent_usd": {variant: round(usd, 6) for variant, usd in spent_usd(found).items()},
        "capture_only": found["capture_only"],
        "waits": waits,
    }


def _waits(controller: str) -> Fields:
    try:
        return dict(_read(f"{controller}/readyz").get("waits", {}))
    except OSError:
        return {}  # it is among the processes, with its state


def _read(url: str) -> Fields:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as reply:
            return dict(json.loads(reply.read()))
    except ValueError as error:
        raise OSError(f"{url} did not answer with JSON: {error}") from error


def _away(admin: str, error: OSError) -> Fields:
    return {"error": f"{admin}/v1/routes does not answer: {error}"}
