"""Shadow: a student answers at stored states of the teacher's runs that it never learned from. Offline, in no request's path.

The thin shell around `shadow_score`: store and student server in, report out. See docs/shadow.md.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError, RetryableError, UnreachableError, UsageError
from stillhouse.schemas.events import PolicyRole
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.openai import message_from_openai, to_openai
from stillhouse.schemas.render import Renderer
from stillhouse.sdk.store import Row, Store
from stillhouse.trainer import shadow_score as score
from stillhouse.trainer import windows, windows_pool
from stillhouse.trainer.decisions import NOBODY, Erasures
from stillhouse.trainer.disk import names_full_disk
from stillhouse.trainer.evaluation.engine import StudentServer
from stillhouse.trainer.evaluation.replica import metrics_address, read_busy_seconds
from stillhouse.trainer.manifest import Manifest
from stillhouse.trainer.shadow_score import Fallback, Figures, Point, Reply, Score
from stillhouse.trainer.students import Student, manifest_sha256

_FOLDER = "shadow"
_COLUMNS = ("key", "content", "tenant", "subject", "family", "task_id", "policies")
_BATCH = 64
Progress = Callable[[int, int], None]


class ShadowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a shadow is made.

    Attributes:
        steps: teacher steps to sample at most.
        seed: of the sample.
        answer_tokens: tokens that one answer may have; the student's context may leave fewer.
        timeout_s: seconds until the gateway would have asked the teacher.
        replica_usd_per_hour: price of the machine that the student runs on; 0: not known.
    """

    steps: int = 200
    seed: int = 1
    answer_tokens: int = 256
    timeout_s: float = 30.0
    replica_usd_per_hour: float = 0.0


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Trajectories that may not be asked about: learned from or validated with, of such a task, erased, without a teacher."""

    seen: int = 0
    same_task: int = 0
    erased: int = 0
    no_teacher: int = 0


class Marginal(msgspec.Struct, frozen=True, kw_only=True):
    """Computing time and money of a step that was asked; `basis` says how the time was measured.

    Both are None when nothing was asked, the money also without a price.
    """

    seconds_per_step: float | None
    usd_per_step: float | None
    basis: str


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """`run/shadow/<student>.json`. `manifest_sha256` is the student's: the report is of those weights and no others."""

    student: str
    manifest_sha256: str
    lineage: str
    window: str
    made_at: int
    settings: ShadowSettings
    eligible: int
    left_out: LeftOut
    all: Figures
    families: dict[str, Figures]
    marginal: Marginal
    scores: tuple[Score, ...]


def shadow(
    student: Student, store: Store, server: StudentServer, base_model: Path, settings: ShadowSettings = ShadowSettings(), *,  # noqa: B008
    alone: bool, erasures: Erasures = NOBODY, clock: windows.Clock = windows.wall_clock, progress: Progress = lambda done, total: None,
) -> ShadowReport:  # fmt: skip
    """Ask a student at a sample of the teacher's stored steps. Nothing is written.

    The adapter is loaded under its name and stays loaded: on a shared server somebody else may have come to need it.

    Args:
        student: whom to ask.
        store: the trajectories and windows.
        server: where it is asked, one request at a time.
        base_model: folder of the base model, for its tokenizer.
        settings: see there.
        alone: whether nobody else uses the server: only then are its busy seconds this shadow's.
        erasures: whose rows may not be used though they are still stored.
        clock: microseconds since the epoch.
        progress: told how many steps are done, of how many.

    Raises:
        UsageError: no stored step of a teacher is left, or the student's window is not in this store.
        PermanentError: the server refuses the student, or a request.
        RetryableError: the server is overloaded, or broke off.
        UnreachableError: it does not answer.
    """
    name = student.manifest.name
    keys, left_out = _eligible(store, student.manifest, erasures)
    chosen = score.sample(_points(store, keys, settings), settings.steps, settings.seed)
    if not chosen:
        raise UsageError(
            f"no step of a teacher that {name} has not learned from",
            where=f"{sum(msgspec.structs.astuple(left_out))} trajectories left out",
            fix="Wait for more traffic, or import some.",
        )
    server.load(name, student.folder)
    asking = _Asking(student, server, base_model, settings)
    busy_before = read_busy_seconds(metrics_address(server.url))
    scores = []
    for done, point in enumerate(chosen):
        progress(done, len(chosen))
        scores.append(asking.at(point))
    busy_after = read_busy_seconds(metrics_address(server.url))
    busy = busy_after - busy_before if alone and busy_before is not None and busy_after is not None else None
    return ShadowReport(
        student=name, manifest_sha256=manifest_sha256(student.folder), lineage=student.manifest.lineage, window=student.manifest.window,
        made_at=clock(), settings=settings, eligible=len(keys), left_out=left_out, all=score.figures(scores),
        families=score.by_family(scores), marginal=_marginal(scores, busy, settings), scores=tuple(scores),
    )  # fmt: skip


def save(report: ShadowReport, run: Path) -> Path:
    """Keep a report in the folder `run` of a state folder, in place of the student's last one; where it lies.

    Raises:
        RetryableError: there is no room for it; the last one stays.
    """
    path = run / _FOLDER / f"{report.student}.json"
    part = path.with_suffix(".part")
    with names_full_disk(path.parent, "shadow the student again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
        part.replace(path)
    return path


def load(run: Path, folder: Path) -> ShadowReport | None:
    """The report of the student in `folder`; None when there is none of these weights.

    Raises:
        PermanentError: the file is not a report.
    """
    path = run / _FOLDER / f"{folder.name}.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=ShadowReport)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        fix = "Make it again: `stillhouse students shadow`."
        raise PermanentError(f"not a shadow's report: {error}", where=str(path), fix=fix) from error
    return found if found.manifest_sha256 == manifest_sha256(folder) else None


def _eligible(store: Store, manifest: Manifest, erasures: Erasures) -> tuple[list[str], LeftOut]:
    """Keys of the trajectories that may be asked about, and how many may not."""
    known = {w.key: w for w in windows.list_windows(store, manifest.lineage)}
    if manifest.window not in known:
        raise UsageError(
            f"the window of {manifest.name} is not in this store", where=manifest.window, fix="Use the state it was trained in."
        )
    links = windows_pool.chain(known, known[manifest.window])
    seen = {row.key for row in windows_pool.learned_by(links)}
    seen |= {key for link in links if link.curated for key in link.curated.validation}
    return choose(store.trajectories(columns=_COLUMNS), seen, erasures)


def choose(rows: Sequence[Row], seen: set[str], erasures: Erasures = NOBODY) -> tuple[list[str], LeftOut]:
    """Pure: keys of the rows that a student may be asked about, and how many were left out.

    Args:
        rows: of the table `trajectories`.
        seen: keys that the student learned from or was chosen by; another run of the same task tells what it remembers.
        erasures: see `shadow`.
    """
    tasks = {_task(row) for row in rows if row["key"] in seen and row["task_id"]}
    keys: list[str] = []
    counts = dict.fromkeys(LeftOut.__struct_fields__, 0)
    for row in rows:
        why = _why_not(row, seen, tasks, erasures)
        if why is None:
            keys.append(row["key"])
        else:
            counts[why] += 1
    return keys, LeftOut(**counts)


def _why_not(row: Row, seen: set[str], tasks: set[tuple[Any, ...]], erasures: Erasures) -> str | None:
    if row["content"] == ERASED or erasures.covers(row["tenant"], row["subject"]):
        return "erased"
    if row["key"] in seen:
        return "seen"
    if row["task_id"] and _task(row) in tasks:
        return "same_task"
    taught = any(policy.get("role") == PolicyRole.TEACHER.value for policy in row["policies"] or ())
    return None if taught else "no_teacher"


def _task(row: Row) -> tuple[Any, ...]:
    return (row["tenant"], row["family"], row["task_id"])


def _points(store: Store, keys: Sequence[str], settings: ShadowSettings) -> dict[str, list[Point]]:
    """The teacher's steps of as many trajectories as the sample can need."""
    found: dict[str, list[Point]] = {}
    drawn = score.order(keys, settings.seed)
    for start in range(0, len(drawn), _BATCH):
        if len(found) >= settings.steps:
            break
        found |= {key: steps for key, made in store.load(drawn[start : start + _BATCH]).items() if (steps := score.points(made))}
    return found


class _Asking:
    """A loaded student behind its server."""

    def __init__(self, student: Student, server: StudentServer, base_model: Path, settings: ShadowSettings) -> None:
        self._spec, self._settings = student.render, settings
        self._renderer, self._name = Renderer(student.render, base_model), student.manifest.name
        self._url = f"{server.base_url}/chat/completions"
        self._context = min(student.render.context_limit, server.context(self._name))

    def at(self, point: Point) -> Score:
        """One step, asked and judged, as the gateway would serve it."""
        if not score.covered(point, self._spec):
            return score.unasked(point, Fallback.UNCOVERED)
        room = self._context - len(self._renderer.encode(point.state, point.tools, add_generation_prompt=True).ids)
        if room < 1:
            return score.unasked(point, Fallback.CONTEXT_FULL)
        limit = min(room, self._settings.answer_tokens)
        body: dict[str, Any] = {"model": self._name, "messages": to_openai(point.state), "temperature": 0.0, "max_tokens": limit}
        if point.tools:
            body["tools"] = point.tools
        began = time.monotonic()
        try:
            answer, malformed = post(self._url, body, self._settings.timeout_s)
        except TimeoutError:
            return score.timed_out(point, time.monotonic() - began)
        took = time.monotonic() - began
        choice = answer["choices"][0]
        full = choice["finish_reason"] == "length" and limit == room
        return score.judge(point, Reply(message_from_openai(choice["message"]), malformed, full), took)


def post(url: str, body: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], bool]:
    """Ask a student server for one answer; it, and whether it was no action of the student's grammar.

    Raises:
        TimeoutError: it took too long.
        PermanentError: it refuses the request.
        RetryableError: it is overloaded.
        UnreachableError: it does not answer.
    """
    request = urllib.request.Request(url, data=msgspec.json.encode(body), headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.loads(answer.read()), "x-stillhouse-format-error" in answer.headers
    except urllib.error.HTTPError as error:
        kind = RetryableError if error.code in (429, 503) else PermanentError
        raise kind(f"the student server answered {error.code}: {error.read().decode(errors='replace')[:400]}", where=url) from error
    except OSError as error:
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            raise TimeoutError from error
        raise UnreachableError(f"the student server does not answer: {error}", where=url, fix="See its log.") from error


def _marginal(scores: Sequence[Score], busy_s: float | None, settings: ShadowSettings) -> Marginal:
    asked = [s for s in scores if s.asked]
    basis = "the server's busy seconds" if busy_s is not None else "the time of each request: others used the server too"
    if not asked:
        return Marginal(seconds_per_step=None, usd_per_step=None, basis=basis)
    seconds = (sum(s.latency_s or 0.0 for s in asked) if busy_s is None else busy_s) / len(asked)
    usd = seconds * settings.replica_usd_per_hour / 3600 if settings.replica_usd_per_hour else None
    return Marginal(seconds_per_step=seconds, usd_per_step=usd, basis=basis)
