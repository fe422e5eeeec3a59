"""`python -m stillhouse.trainer run`: one window in a process of its own.

Standard output carries progress as JSON lines, the last of them `{"event": "result", …}` or `{"event": "error", …}`.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast, get_args

import msgspec

from stillhouse.schemas.errors import ExitCode, MissingExtraError, RetryableError, StillhouseError, UsageError
from stillhouse.sdk.config import Config
from stillhouse.sdk.kafka import KafkaSettings
from stillhouse.sdk.store import Store, StoreSettings
from stillhouse.trainer import models, windows
from stillhouse.trainer.announce import publish
from stillhouse.trainer.decisions import read_barred, read_erasures
from stillhouse.trainer.jobs import Job, JobResult, Steps
from stillhouse.trainer.planning import action_loss_of, check_recipe, next_plan, replay_of
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.shadow_job import ShadowOfNew, route_of
from stillhouse.trainer.terms import Asked, curation_in_force, in_force, refuse_contradictions
from stillhouse.trainer.windows_types import Mode, State

_log = logging.getLogger("stillhouse.trainer")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m stillhouse.trainer", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the lineage's open window, or plan and run the next one")
    run.add_argument("--state", type=Path)
    run.add_argument("--config", type=Path)
    run.add_argument("--bootstrap-servers", help="where erasures and students' states are read and told; by default neither")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a setting; wins over file and environment")
    run.add_argument("--family", action="append", help="only this family; may be given again")
    run.add_argument("--weight", action="append", metavar="FAMILY=NUMBER", help="what a family is drawn by; may be given again")
    run.add_argument("--mode", metavar="|".join(get_args(Mode)), help="instead of the rule")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one window; its exit code (4: it was rejected)."""
    options = parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    try:
        result = run_window(options)
    except StillhouseError as error:
        _log.error("%s", error)
        retryable = isinstance(error, RetryableError)
        _say({"event": "error", "what": error.what, "where": error.where, "fix": error.fix, "retryable": retryable})
        return error.exit_code
    _say({"event": "result", **msgspec.to_builtins(result)})
    return ExitCode.GATE_SAID_NO if result.state is State.REJECTED else ExitCode.OK


def run_window(options: argparse.Namespace) -> JobResult:
    """Go on with the lineage's open window, or plan the next one and run it.

    All that can be wrong with options, settings and this machine's parts is found before a window is claimed.

    Raises:
        UsageError: an option has no such value, or contradicts what the open window was claimed with.
        StillhouseError: settings, store, model or plan are not as they must be.
    """
    said = _settings(options.set)
    asked = _asked(options, said)
    config = Config.load(options.config, dict(os.environ), options.state, said)
    window, trainer = config.section("window", WindowSettings), config.section("trainer", TrainerSettings)
    store = Store.open(config.section("store", StoreSettings).location(config.state), create=False)
    kafka = _kafka(config, options.bootstrap_servers)
    going = windows.open_window(store, window.lineage)
    if going is not None:
        check_recipe(trainer)
        refuse_contradictions(going.plan, asked, window, trainer)
        window, trainer = curation_in_force(going.plan, window), in_force(going.plan, trainer)
    base = models.resolve(trainer.model)
    steps = _steps(config, store, window, trainer, base, kafka)
    planned = None
    if going is None:
        planned = next_plan(
            store, window, trainer, kafka, families=asked.families, weights=asked.weights, mode=asked.mode, said=asked.settings
        )
    return Job(store, config.state, base, window, trainer, steps, progress=_say).run(planned)


def _asked(options: argparse.Namespace, said: Mapping[str, object]) -> Asked:
    if options.mode is not None and options.mode not in get_args(Mode):
        raise UsageError(f"no such mode: {options.mode}", where="--mode", fix=f"Use one of: {', '.join(get_args(Mode))}.")
    weights = {name: _number(value, name) for name, _, value in (w.partition("=") for w in options.weight)} if options.weight else None
    families = tuple(options.family) if options.family else None
    return Asked(settings=frozenset(said), families=families, weights=weights, mode=cast(Mode | None, options.mode))


def _kafka(config: Config, servers: str | None) -> KafkaSettings | None:
    return msgspec.structs.replace(config.section("kafka", KafkaSettings), bootstrap_servers=servers) if servers else None


def _steps(
    config: Config, store: Store, window: WindowSettings, trainer: TrainerSettings, base: Path, kafka: KafkaSettings | None
) -> Steps:
    try:
        from stillhouse.trainer.training import train  # torch: only a process that trains pays for it
        from stillhouse.trainer.training_checks import check_lineage
        from stillhouse.trainer.validation import Validation
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stillhouse":
            raise
        raise MissingExtraError("training", "trainer") from error

    validation = None
    if trainer.benchmark:
        log, work = config.state_dir("logs") / "validation-student.log", config.state_dir("run") / "validation"
        validation = Validation(trainer, base, log, work)
    erasures = partial(read_erasures, kafka) if kafka else None
    tried = trainer.shadow_steps and route_of(config, window.lineage) is not None
    return Steps(
        train=train,
        check=check_lineage,
        evaluate=validation,
        shadow=ShadowOfNew(config, store, trainer, base, erasures) if tried else None,
        publish=partial(publish, kafka) if kafka else None,
        erasures=erasures,
        barred=partial(read_barred, kafka, below_teacher=window.continue_below_teacher) if kafka else None,
        replay=replay_of(window),
        action_loss=action_loss_of(window, trainer, base),
    )


def _settings(pairs: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or "." not in name:
            raise UsageError(f"not a setting: {pair}", where="--set", fix="Give it as section.key=value.")
        try:
            found[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            found[name] = text
    return found


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"the weight of {name} is no number: {text!r}", where="--weight", fix="Give it as family=0.5.") from error


def _say(event: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event, enc_hook=str) + b"\n")
    sys.stdout.flush()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # every state is on disk: the next run goes on from it
