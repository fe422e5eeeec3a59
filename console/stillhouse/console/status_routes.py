"""What each route serves, and what its canary waits for: asked of the gateway and of the controller that run."""

import json
import urllib.error
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
    served = _ask(f"{record.admin}/v1/routes")
    if "error" in served:
        return served
    controller = record.metrics.get("canary", "").removesuffix("/metrics")
    waits = _ask(f"{controller}/readyz").get("waits", {}) if controller else {}
    return {name: _route(found, waits.get(name)) for name, found in served["routes"].items()}


def _route(found: Fields, waits: str | None) -> Fields:
    runs: dict[str, int] = {}
    for arm in found["arms"]:
        runs[arm["arm"]] = runs.get(arm["arm"], 0) + arm["trajectories"]
    spent: dict[str, float] = {}
    for line in found["ledger"]:
        spent[line["variant"]] = round(spent.get(line["variant"], 0.0) + line["cost_micro_usd"] / 1e6, 6)
    return {
        "champion": found["champion"],
        "canary": found["canary"],
        "share": found["share"],
        "paused": found["paused"],
        "ready": found["ready"],
        "runs": runs,
        "spent_usd": spent,
        "capture_only": found["capture_only"],
        "waits": waits,
    }


def _ask(url: str) -> Fields:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as reply:
            return dict(json.loads(reply.read()))
    except (urllib.error.URLError, OSError, ValueError) as error:
        return {"error": f"{url} does not answer: {error}"}
