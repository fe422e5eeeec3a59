"""`stillhouse windows list|show|plan|run`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import msgspec
import typer

from stillhouse.console import context, output
from stillhouse.console.training import run_job
from stillhouse.schemas.errors import GateError, UsageError
from stillhouse.trainer import windows
from stillhouse.trainer.jobs import plan_report
from stillhouse.trainer.models import resolve
from stillhouse.trainer.planning import next_plan, plan_tools
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.windows_types import Mode, State, Window

group = typer.Typer()

COLUMNS = ["window", "lineage", "state", "mode", "rows", "kept", "supervised_tokens", "student", "since", "reason"]

RecipeOption = Annotated[
    str | None, typer.Option(help="bc-trajectory, bc-step or weighted [default: \\[trainer] recipe].", show_default=False)
]
FamilyOption = Annotated[list[str] | None, typer.Option("--family", help="Only this family; may be given again.", show_default=False)]
SizeOption = Annotated[int | None, typer.Option(help="New examples to draw; 0 takes all.", min=0, show_default=False)]
ModeOption = Annotated[str | None, typer.Option(help="fresh or continue, instead of the rule.", show_default=False)]
ModelOption = Annotated[str | None, typer.Option(help="Base model: a name or a folder.", show_default=False)]


def overrides(recipe: str | None, size: int | None, model: str | None, max_steps: int | None = None) -> dict[str, object]:
    """Command-line options as settings."""
    return {"trainer.recipe": recipe, "window.size": size, "trainer.model": model, "trainer.max_steps": max_steps}


def _mode(text: str | None) -> Mode | None:
    if text is not None and text not in get_args(Mode):
        raise UsageError(f"no such mode: {text}", where="--mode", fix=f"One of: {', '.join(get_args(Mode))}.")
    return cast(Mode | None, text)


def _row(window: Window) -> output.Row:
    curated = window.curated
    return {
        "window": window.key,
        "lineage": window.plan.lineage,
        "state": window.state.value,
        "mode": window.plan.mode,
        "rows": len(window.plan.rows),
        "kept": curated.waterfall.kept if curated else None,
        "supervised_tokens": curated.waterfall.supervised_tokens if curated else None,
        "student": window.student or None,
        "since": datetime.fromtimestamp(window.history[-1][1] / 1e6, UTC).isoformat(timespec="seconds") if window.history else None,
        "reason": window.reason or None,
    }


@group.command("list")
def list_(
    state: context.StateOption = None,
    lineage: Annotated[str | None, typer.Option(help="Only this lineage.")] = None,
    json: context.JsonOption = False,
) -> None:
    """Windows, oldest first, with the state each is in."""
    items = [_row(w) for w in windows.list_windows(context.load(state).store(), lineage)]
    output.show_list(items, COLUMNS, as_json=json, empty="No windows yet. `stillhouse windows plan` shows what one would be.")


@group.command()
def show(
    window: Annotated[str, typer.Argument(help="A window's name, as `list` prints it.")],
    state: context.StateOption = None,
    json: context.JsonOption = False,
) -> None:
    """One window: its rows, its waterfall, its training, and the offsets that it goes back to."""
    found = windows.show(context.load(state).store(), window)
    if json:
        output.print_json(msgspec.to_builtins(found, str_keys=True))
        return
    offsets = {str(p): f"{first}-{last}" for p, (first, last) in found.plan.offsets.items()}
    output.show_object({**_row(found), "why": found.plan.why, "parent": found.plan.parent, "offsets by partition": offsets}, as_json=False)
    if found.curated:
        output.out.print()
        show_waterfall(found.curated.waterfall.to_json())
    if found.trained:
        losses = {name: getattr(found.trained, name) for name in ("validation_loss", "base_loss", "parent_loss", "train_loss")}
        output.out.print()
        output.show_object(losses, as_json=False)


@group.command()
def plan(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    recipe: RecipeOption = None,
    family: FamilyOption = None,
    size: SizeOption = None,
    mode: ModeOption = None,
    model: ModelOption = None,
    json: context.JsonOption = False,
) -> None:
    """What the next window would train on, and what it would leave out and why. Nothing is written."""
    loaded = context.load(state, config, overrides(recipe, size, model))
    settings, trainer = loaded.config.section("window", WindowSettings), loaded.config.section("trainer", TrainerSettings)
    store, base = loaded.store(), resolve(trainer.model)
    kafka = loaded.kafka if loaded.has_broker else None
    said = {name for name, value in overrides(recipe, size, model).items() if value is not None}
    planned = next_plan(store, settings, trainer, kafka, families=family, mode=_mode(mode), said=said)
    tools = plan_tools(planned, settings, trainer, base, loaded.state / "students")
    with output.progress("curating", quiet=json):
        report = plan_report(store, planned, settings, trainer.render().for_model(base), base, tools)
    if json:
        output.print_json(report)
        return
    output.show_object({name: report[name] for name in ("window", "mode", "why", "parent", "rows", "again")}, as_json=False)
    output.out.print()
    show_waterfall(report)


@group.command()
def run(
    state: context.StateOption = None,
    config: context.ConfigOption = None,
    recipe: RecipeOption = None,
    family: FamilyOption = None,
    size: SizeOption = None,
    mode: ModeOption = None,
    model: ModelOption = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.", min=1, show_default=False)] = None,
    json: context.JsonOption = False,
) -> None:
    """Claim the next window and train on it; a window that was interrupted goes on where it was."""
    loaded = context.load(state, config, overrides(recipe, size, model, max_steps))
    options = ["--family=" + name for name in family or ()] + ([f"--mode={mode}"] if mode else [])
    result = run_job(loaded, overrides(recipe, size, model, max_steps), options, quiet=json)
    if json:
        output.print_json(result)
    else:
        _print_result(loaded.state, result)
    if result["state"] == State.REJECTED:
        raise GateError(f"the window was rejected: {result['reason']}", where=result["window"], fix="Its rows are back in the pool.")


def _print_result(state: Path, result: dict[str, Any]) -> None:
    if result.get("waterfall"):
        show_waterfall(result["waterfall"])
        output.out.print()
    shown = {name: result.get(name) for name in ("window", "state", "mode", "student", "validation_loss", "base_loss", "parent_loss")}
    output.show_object({**shown, "folder": str(state / "students" / result["student"]) if result.get("student") else None}, as_json=False)


def show_waterfall(report: dict[str, Any]) -> None:
    """What each stage of curation got, kept and dropped, as a table."""
    rows = [[s["name"], s["in"], s["kept"], s.get("dropped") or {}, s.get("notes") or {}] for s in report["stages"]]
    output.out.print(output.table(rows, ["stage", "in", "kept", "dropped", "notes"], wrapped=("dropped", "notes")))
    counts = f"{report['events']} events, {report['trajectories']} trajectories, {report['kept']} kept, {report['examples']} examples"
    output.out.print(f"{counts}, {report['supervised_tokens']} supervised tokens; manifest {report['manifest_hash']}", soft_wrap=True)
    for note in report["notes"]:
        output.out.print(f"note: {note}", soft_wrap=True, markup=False)
