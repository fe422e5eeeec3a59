"""One window from claim to student: curate, train, evaluate, gate, register.

Every step leaves its artefact on disk or in the table before the window's state moves on, and every step can be done again:
a trainer that was killed anywhere goes on from the state that it finds (docs/windows.md says what a crash after each step leaves).
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import GateError, PermanentError, RetryableError
from stillhouse.schemas.facts import StudentStage, StudentState
from stillhouse.schemas.fold import ERASED
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.sdk.store import Store
from stillhouse.trainer import students, windows
from stillhouse.trainer.curate.counting import RenderCounter
from stillhouse.trainer.curate.pipeline import Curated, Tools
from stillhouse.trainer.examples import Example, read_examples, write_examples
from stillhouse.trainer.gates import Verdict, data_gate, format_gate, loss_gate
from stillhouse.trainer.jobs_parts import Evaluate, JobResult, Progress, Steps, Train, coverage, result_of, tokens_by_key
from stillhouse.trainer.manifest import Manifest, versions
from stillhouse.trainer.models import check
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.training_job import TrainEvent, TrainJob, TrainResult
from stillhouse.trainer.windows_types import TERMINAL, CuratedFacts, EvaluatedFacts, State, TrainedFacts, Window, WindowPlan

__all__ = ["Evaluate", "Job", "JobResult", "Progress", "Steps", "Train", "plan_report"]

_PLACING_TRIES = 5


class Job:
    """The things that every step of a window needs.

    Args:
        store: rows and windows.
        state: the state folder; the job keeps its files in `run/windows/<window>`.
        base_model: folder of the base model.
        settings: `[window]`.
        trainer: `[trainer]`.
        steps: see `Steps`.
        progress: told what happens.
        clock: microseconds since the epoch.
        erasure_offset: position in the topic of erasures up to which rows were left out.
    """

    def __init__(
        self,
        store: Store,
        state: Path,
        base_model: Path,
        settings: WindowSettings,
        trainer: TrainerSettings,
        steps: Steps,
        *,
        progress: Progress | None = None,
        clock: windows.Clock = windows.wall_clock,
        erasure_offset: int = -1,
    ) -> None:
        self.store, self.state, self.base_model = store, state, base_model
        self.settings, self.trainer, self.steps = settings, trainer, steps
        self.say: Progress = progress or (lambda _: None)
        self.clock, self.erasure_offset = clock, erasure_offset
        self.view = trainer.render().for_model(base_model)
        self.students = state / "students"

    def run(self, planned: WindowPlan | None = None) -> JobResult:
        """Run a planned window, or go on with the lineage's open one when none is given.

        Raises:
            PermanentError: there is no open window, or the plan cannot be claimed.
            RetryableError: another process is at it, or the store is away; the window stays as it is.
        """
        with self._alone():
            if planned is None:
                window = windows.open_window(self.store, self.settings.lineage)
                if window is None:
                    raise PermanentError("no window to go on with", where=self.settings.lineage, fix="Plan one first.")
            else:
                window = windows.claim(self.store, planned, clock=self.clock)
            self._tell(window)
            while window.state not in TERMINAL:
                window = self._step(window)
                self._tell(window)
            return result_of(window)

    def folder(self, window: Window) -> Path:
        """Where a window's files are."""
        return self.state / "run" / "windows" / window.key

    def _step(self, window: Window) -> Window:
        step = {
            State.CLAIMED: self._curate,
            State.CURATED: self._train,
            State.TRAINED: self._evaluate,
            State.EVALUATED: self._register,
        }[window.state]
        try:
            return step(window)
        except PermanentError as error:  # the same again would fail again: the rows go back to the pool
            return self._advance(window, State.REJECTED, reason=str(error))

    def _advance(self, window: Window, to: State, **facts: Any) -> Window:
        return windows.advance(self.store, window, to, clock=self.clock, **facts)

    def _tell(self, window: Window) -> None:
        self.say({"event": "state", "window": window.key, "state": window.state.value, "reason": window.reason, "student": window.student})

    def _curate(self, window: Window) -> Window:
        curated = self._curated(window)
        facts = CuratedFacts(
            manifest_hash=curated.manifest_hash,
            waterfall=curated.waterfall,
            histograms=curated.histograms,
            trained=tokens_by_key(curated.train),
            validation=tuple(sorted({e.key for e in curated.validation})),
            returned=tuple(sorted(curated.returned)),
        )
        return self._advance(window, State.CURATED, curated=facts)

    def _curated(self, window: Window) -> Curated:
        """Curate, place the window's tasks for ever, and write the examples."""
        for attempt in range(_PLACING_TRIES):
            curated = windows.curate_plan(self.store, window.plan, self.settings, RenderCounter(self._renderer()), self._tools())
            try:
                windows.store_ledger(self.store, curated.added, clock=self.clock)
                break
            except RetryableError:  # another planner placed tasks in between: theirs count, and curation reads them
                if attempt == _PLACING_TRIES - 1:
                    raise
        folder = self.folder(window)
        folder.mkdir(parents=True, exist_ok=True)
        write_examples(folder / "train.jsonl", curated.train)
        write_examples(folder / "validation.jsonl", curated.validation)
        (folder / "reasons.json").write_bytes(msgspec.json.format(msgspec.json.encode(curated.reasons)))
        (folder / "waterfall.json").write_bytes(msgspec.json.format(msgspec.json.encode(curated.waterfall)))
        return curated

    def _train(self, window: Window) -> Window:
        train, validation = self._examples(window)
        self._gate(data_gate(train, validation, erased=self._erased(train)))
        job = TrainJob(
            base_model=self.base_model,
            parent=self.students / window.plan.parent if window.plan.parent else None,
            render=msgspec.structs.replace(self.view, distilled_on=coverage(train)),
            recipe=self.trainer.recipe,
            mode=window.plan.mode,
            settings=self.trainer.training(),
            out=self.folder(window) / "training",
            seed=self.trainer.seed,
        )
        result = self.steps.train(job, train, validation, self._train_progress)
        facts = TrainedFacts(
            candidate=str(result.candidate.relative_to(self.state)),
            validation_loss=result.validation_loss,
            parent_loss=result.parent_loss,
            train_loss=result.train_loss,
            base_loss=result.base_loss,
            result=msgspec.to_builtins(result, enc_hook=str),
        )
        return self._advance(window, State.TRAINED, trained=facts)

    def _evaluate(self, window: Window) -> Window:
        assert window.trained is not None
        facts = EvaluatedFacts()
        if self.steps.evaluate is not None:
            parent = self.students / window.plan.parent if window.plan.parent else None
            facts = self.steps.evaluate(self.state / window.trained.candidate, parent, self.say)
        return self._advance(window, State.EVALUATED, evaluated=facts)

    def _register(self, window: Window) -> Window:
        assert window.trained is not None and window.evaluated is not None
        trained, evaluated = window.trained, window.evaluated
        train, validation = self._examples(window)
        self._gate(data_gate(train, validation, erased=self._erased(train)))
        if evaluated.format_errors is not None:
            errors = (evaluated.format_errors, evaluated.parent_format_errors)
            self._gate(format_gate(*errors, slack=self.trainer.format_slack))
        self._gate(
            loss_gate(
                trained.validation_loss,
                trained.parent_loss,
                trained.train_loss or 0.0,
                success=evaluated.success,
                parent_success=evaluated.parent_success,
                slack=self.trainer.loss_slack,
                gap=self.trainer.loss_gap,
            )
        )
        folder = self._registered(window) or students.register(self.students, self.state / trained.candidate, self._manifest(window, train))
        if self.steps.publish is not None:
            self.steps.publish(
                StudentState(
                    student=folder.name,
                    stage=StudentStage.REGISTERED,
                    window=window.key,
                    manifest_sha256=students.manifest_sha256(folder),
                    decided_by="trainer",
                    decided_at=self.clock(),
                )
            )
        return self._advance(window, State.REGISTERED, student=folder.name)

    def _registered(self, window: Window) -> Path | None:
        """The student of a registration that was killed before the window's state moved on."""
        names = [m.name for m in students.list_students(self.students) if m.window == window.key]
        return self.students / names[-1] if names else None

    def _manifest(self, window: Window, train: Sequence[Example]) -> Manifest:
        assert window.curated is not None and window.trained is not None and window.evaluated is not None
        result = msgspec.convert(window.trained.result, TrainResult, strict=False, dec_hook=lambda kind, value: kind(value))
        return Manifest(
            parent=window.plan.parent,
            lineage=window.plan.lineage,
            window=window.key,
            dataset_sha256=window.curated.manifest_hash,
            offsets=window.plan.offsets,
            erasure_offset=self.erasure_offset,
            base_model=self.base_model.name,
            base_sha256=check(self.base_model),
            recipe=self.trainer.recipe,
            mode=window.plan.mode,
            settings=msgspec.to_builtins(self.trainer.training()),
            seed=self.trainer.seed,
            rows=result.rows,
            tokens=result.tokens,
            supervised_tokens=result.supervised_tokens,
            train_loss=result.train_loss,
            validation_loss=result.validation_loss,
            base_loss=result.base_loss,
            parent_loss=result.parent_loss,
            evaluation=msgspec.to_builtins(window.evaluated),
            teachers=tuple(sorted({e.source for e in train})),
            versions=result.versions or versions(),
        )

    def _examples(self, window: Window) -> tuple[list[Example], list[Example]]:
        """The window's examples; curated again when its files are gone, which gives the same or fails."""
        assert window.curated is not None
        paths = [self.folder(window) / f"{name}.jsonl" for name in ("train", "validation")]
        if not all(p.is_file() for p in paths) and self._curated(window).manifest_hash != window.curated.manifest_hash:
            raise PermanentError(
                "the window no longer curates to what it was",
                where=window.key,
                fix="Its settings or the code have changed since: let it be rejected, and run a new window.",
            )
        train, validation = (list(read_examples(p)) for p in paths)
        return train, validation

    def _erased(self, examples: Sequence[Example]) -> set[str]:
        """Keys of examples whose row was erased since it was listed, or is gone."""
        keys = {e.key for e in examples}
        rows = self.store.by_key("trajectories", sorted(keys), ("key", "content"))
        return {key for key in keys if key not in rows or rows[key]["content"] == ERASED}

    def _gate(self, verdict: Verdict) -> None:
        if not verdict.passed:
            raise GateError(verdict.reason)

    def _renderer(self) -> Renderer:
        return Renderer(self.view, self.base_model)

    def _tools(self) -> Tools:
        return Tools(
            replay=self.steps.replay,
            action_loss=self.steps.action_loss,
            report=lambda stage, kept: self.say({"event": "stage", "stage": stage, "kept": kept}),
        )

    def _train_progress(self, event: TrainEvent) -> None:
        self.say({"event": "train", **msgspec.to_builtins(event)})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One trainer of a lineage on this machine; the compare-and-set of states is what holds between machines."""
        folder = self.state / "run" / "windows"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RetryableError("another trainer is running a window", where=str(folder), fix="Wait for it, or stop it.") from error
            yield


def plan_report(store: Store, planned: WindowPlan, settings: WindowSettings, view: RenderSpec, base_model: Path) -> dict[str, Any]:
    """What `windows plan --json` prints: the waterfall the plan would have, its rows and its mode. Nothing is written."""
    curated = windows.curate_plan(store, planned, settings, RenderCounter(Renderer(view, base_model)))
    head = {"window": planned.key, "mode": planned.mode, "why": planned.why, "parent": planned.parent}
    return {**head, "rows": len(planned.rows), "again": len(planned.again), **curated.waterfall.to_json()}
