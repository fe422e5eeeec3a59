"""`stillhouse canary status|pause|resume|promote|rollback`."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import msgspec
import typer

from stillhouse.console import context, decisions, output
from stillhouse.schemas.errors import GateError
from stillhouse.schemas.facts import CanaryVerdict, StudentStage, StudentState
from stillhouse.schemas.route_state import RouteState, RouteStates
from stillhouse.serving.canary.candidates import next_student

group = typer.Typer()

COLUMNS = ["route", "champion", "canary", "share", "stage", "paused", "since", "verdict", "because", "next"]


@group.command()
def status(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    route: Annotated[str | None, typer.Option(help="Only this route.")] = None,
    json: context.JsonOption = False,
) -> None:
    """What each route serves, who is on trial, and the last verdict with its numbers."""
    found = decisions.read(context.load(state, config).kafka)
    items = [_row(one, found.verdicts.get(name)) for name, one in sorted(found.states.routes.items()) if route in (None, name)]
    output.show_list(items, COLUMNS, as_json=json, empty="No student has been registered for a route yet. `stillhouse students list`.")


def _row(state: RouteState, verdict: CanaryVerdict | None) -> output.Row:
    numbers = msgspec.json.decode(verdict.numbers) if verdict else None
    return {
        "route": state.route,
        "champion": state.champion,
        "canary": state.canary,
        "share": state.share,
        "stage": state.stage_index if state.canary else None,
        "final": state.final,
        "paused": state.paused,
        "since": datetime.fromtimestamp(state.since / 1e6, UTC).isoformat(timespec="seconds") if state.since else None,
        "epoch": state.epoch,
        "experiment": state.experiment,
        "verdict": f"{verdict.verdict} {verdict.student}" if verdict else None,
        "because": numbers["reason"] if numbers else None,
        "next": next_student(state, state, auto=True),
        "numbers": numbers,
        "alpha_spent": verdict.alpha_after if verdict else None,
        "students": {name: stage.value for name, stage in state.stages.items()},
    }


def _stay(states: RouteStates, route: str | None, reason: str, *, paused: bool) -> StudentState:
    now = decisions.running(states, route)
    if now.paused is paused:
        raise GateError(f"the canary is {'already' if paused else 'not'} paused", where=now.route)
    where = {"share": now.share, "stage_index": now.stage_index, "final": now.final, "paused": paused}
    return decisions.by_hand(now, now.canary or "", StudentStage.CANARY, reason, **where)


def _end(states: RouteStates, route: str | None, reason: str, *, stage: StudentStage) -> StudentState:
    now = decisions.running(states, route)
    return decisions.by_hand(now, now.canary or "", stage, reason)


def _decision(name: str, text: str, decide: Callable[[RouteStates, str | None, str], StudentState]) -> None:
    """Add a command that decides about the running canary."""

    def command(
        reason: Annotated[str, typer.Option("--reason", help="Why; it is kept in the log.")],
        route: Annotated[
            str | None, typer.Option("--route", help="Which route [default: the only one with a canary].", show_default=False)
        ] = None,
        state: context.StateOption = None,
        config: context.ConfigOption = None,
        json: context.JsonOption = False,
    ) -> None:
        done = decisions.publish(context.load(state, config).kafka, lambda states: decide(states, route, reason))
        decisions.show(done, as_json=json)

    group.command(name, help=text)(command)


_decision("pause", "Keep the canary at its share: no step up and no crown. What rolls back still does.", partial(_stay, paused=True))
_decision("resume", "Let a paused canary go on.", partial(_stay, paused=False))
_decision("promote", "Make the canary the champion, whatever the evidence says.", partial(_end, stage=StudentStage.CHAMPION))
_decision(
    "rollback",
    "End the canary: its traffic returns, and the student is never tried again under this name.",
    partial(_end, stage=StudentStage.ROLLED_BACK),
)
