"""`stillhouse demo`: the whole loop on the order desk."""

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.console import context, output
from stillhouse.console.demo import teacher as teachers
from stillhouse.console.demo.phases import Phases
from stillhouse.console.demo.report import write_report
from stillhouse.console.demo.run import Demo, Story
from stillhouse.console.demo.settings import FAST, FULL
from stillhouse.console.demo.summary import failures
from stillhouse.schemas.errors import UsageError


def command(
    state: context.StateOption = None,
    seed: Annotated[int, typer.Option(help="Tasks, split, training and fleet derive theirs from it, by name.")] = 1,
    fast: Annotated[
        bool, typer.Option("--fast", help="A tiny random model and 8 tasks: the same code in under two minutes, no claims.")
    ] = False,
    teacher_url: Annotated[str | None, typer.Option(help="A real teacher's OpenAI-compatible address, up to and with /v1.")] = None,
    teacher_model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    json: context.JsonOption = False,
) -> None:
    """The whole loop: agents ask the gateway, students are trained, tried and crowned or rolled back by themselves; and a report.

    Exit code 1 when no student became champion, or when a noisy copy of the champion stayed.

    The stack runs on free ports in a folder of its own, `demo-<seed>` (or `demo-fast-<seed>`) of the state folder.
    """
    if (teacher_url is None) != (teacher_model is None):
        raise UsageError("a real teacher needs both --teacher-url and --teacher-model")
    settings = FAST if fast else FULL
    folder = context.load(state).state / f"demo{'-fast' if fast else ''}-{seed}"
    _refuse_old(folder)
    teacher = teachers.real(teacher_url, teacher_model) if teacher_url and teacher_model else None
    phases = Phases(output.err)
    with phases.shown():
        story = _run(Demo(settings, seed, folder, teacher).run(phases))
    report = write_report(folder / "report", settings, seed, story, phases.seconds)
    if json:
        output.print_json(report.summary)
    else:
        output.out.print(report.text, markup=False, soft_wrap=True)
    for why in (missed := failures(settings, story)):
        output.err.print(f"not as it should be: {why}", markup=False, soft_wrap=True)
    if missed:
        raise typer.Exit(1)


def _run(work: Coroutine[None, None, Story]) -> Story:
    """SIGTERM ends the demo as Ctrl-C does: the processes that it started are stopped, and none is left behind."""

    async def stoppable() -> Story:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None


def _refuse_old(folder: Path) -> None:
    if (folder / "lance").exists():
        fix = f"Remove it (stillhouse down --state {folder}; rm -r {folder}), or give another --seed or --state."
        raise UsageError("a demo of this seed was run here before: its rows would be trained on again", where=str(folder), fix=fix)
