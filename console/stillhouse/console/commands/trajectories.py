"""`stillhouse trajectories list|show`."""

from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from stillhouse.console import context, output
from stillhouse.schemas.errors import UsageError
from stillhouse.schemas.trajectory import Step, Trajectory
from stillhouse.sdk.store_arrow import quoted

group = typer.Typer()

SHOWN = 50
FIELDS = ["key", "task_id", "family", "policies", "status", "outcome", "reward", "steps", "revision"]


@group.command("list")
def list_(
    state: context.StateOption = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome: success, failure, aborted, unknown.")] = None,
    status: Annotated[str | None, typer.Option(help="Only this status: ended, incomplete, unended, failed.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many; 0 for all [default: 50, with --json all].", min=0, show_default=False)
    ] = None,
    json: context.JsonOption = False,
) -> None:
    """Stored runs, by key."""
    wanted = {"family": family, "outcome": outcome, "status": status}
    where = " AND ".join(f"{column} = {quoted(value)}" for column, value in wanted.items() if value is not None)
    limit = (0 if json else SHOWN) if limit is None else limit
    rows = context.load(state).store().trajectories(where=where or None, columns=FIELDS, limit=limit + 1 if limit else None)
    shown = rows[: limit or None]
    items = shown if json else [{**row, "policies": [_policy(p) for p in row["policies"] or ()]} for row in shown]
    output.show_list(
        items, FIELDS, as_json=json, empty="No trajectories yet. `stillhouse import` brings recorded runs; docs/sdk.md connects an agent."
    )
    if len(shown) < len(rows):
        output.err.print(f"the first {len(shown)}; all of them: --limit 0")


def _policy(policy: output.Row) -> str:
    return " ".join(filter(None, (policy.get("role"), policy.get("model"), policy.get("version"))))


@group.command()
def show(
    key: Annotated[str, typer.Argument(help="tenant/trajectory_id, as `list` prints it.")],
    state: context.StateOption = None,
    json: context.JsonOption = False,
) -> None:
    """One run, step by step."""
    found = context.load(state).store().load([key])
    if key not in found:
        raise UsageError("no such trajectory", where=key, fix="See `stillhouse trajectories list`.")
    if json:
        output.print_json(msgspec.to_builtins(found[key]))
        return
    _print(found[key])


def _print(trajectory: Trajectory) -> None:
    head = {
        "key": trajectory.key,
        "task": trajectory.task.id,
        "family": trajectory.task.family,
        "status": f"{trajectory.status} {trajectory.status_reason}".strip(),
        "outcome": f"{trajectory.outcome} {f'by {trajectory.outcome_source}' if trajectory.outcome_source else ''}".strip(),
        "reward": trajectory.reward,
        "revision": trajectory.revision,
    }
    output.show_object(head, as_json=False)
    for step in trajectory.steps:
        _print_step(step)


def _print_step(step: Step) -> None:
    who = " ".join(filter(None, (step.policy.role, step.policy.model)))
    output.out.print(f"\n[bold]step {step.index}[/] {escape(who)}")
    for message in step.state:
        output.out.print(f"  {message.role}: {escape(message.text)}")
    if step.action.reasoning:
        output.out.print(f"  [dim]thinks: {escape(step.action.reasoning)}[/]")
    if step.action.text:
        output.out.print(f"  [green]says[/]: {escape(step.action.text)}")
    for call in step.action.tool_calls:
        output.out.print(f"  [green]calls[/] {escape(call.name)} {escape(msgspec.json.encode(call.arguments).decode())}")
    for message in step.observation:
        output.out.print(f"  {message.role}: {escape(message.text)}")
    if step.error:
        output.out.print(f"  [red]error[/]: {escape(step.error)}")
