"""One window from claim to student: curate, train, evaluate, gate, register.

Every step leaves its artefact on disk or in the table before the window's state moves on, and every step can be done again:
a trainer that was killed anywhere goes on from the state that it finds (docs/windows.md says what a crash after each step leaves).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import GateError, PermanentError, RetryableError
from stillhouse.sdk.store import Store
from stillhouse.trainer import students, windows
from stillhouse.trainer.curate.pipeline import Tools
from stillhouse.trainer.decisions import NOBODY, Erasures
from stillhouse.trainer.disk import names_full_disk
from stillhouse.trainer.examples import Example
from stillhouse.trainer.files import alone
from stillhouse.trainer.jobs_data import WindowData, plan_report
from stillhouse.trainer.jobs_parts import Evaluate, JobResult, Progress, Steps, Train, coverage, result_of, tokens_by_key
from stillhouse.trainer.jobs_registration import announcement, check_candidate, check_measured, manifest_of, registered
from stillhouse.trainer.settings import TrainerSettings, WindowSettings
from stillhouse.trainer.terms import curation_in_force, in_force, terms_of
from stillhouse.trainer.training_job import TrainEvent, TrainJob
from stillhouse.trainer.windows_types import TERMINAL, CuratedFacts, EvaluatedFacts, State, TrainedFacts, Window, WindowPlan

__all__ = ["Evaluate", "Job", "JobResult", "Progress", "Steps", "Train", "plan_report"]


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
    ) -> None:
        self.store, self.state, self.base_model = store, state, base_model
        self.steps = steps
        self.say: Progress = progress or (lambda _: None)
        self.clock = clock
        self.students = state / "students"
        self._take(settings, trainer)

    def _take(self, settings: WindowSettings, trainer: TrainerSettings) -> None:
        self.settings, self.trainer = settings, trainer
        self.view = trainer.render().for_model(self.base_model)
        self.data = WindowData(self.store, self.state, self.settings, self.view, self.base_model)

    def run(self, planned: WindowPlan | None = None) -> JobResult:
        """Run a planned window, or go on with the lineage's open one when none is given.

        The window goes on under the terms that it was claimed with, whatever the settings are now.

        Raises:
            PermanentError: there is no open window, the plan cannot be claimed, or something on this machine is not as it must be;
                the window stays as it is.
            RetryableError: another process is at it, the store is away, or the disk is full; the window stays as it is.
        """
        with names_full_disk(self.state), self._alone():
            if planned is None:
                window = windows.open_window(self.store, self.settings.lineage)
                if window is None:
                    raise PermanentError("no window to go on with", where=self.settings.lineage, fix="Plan one first.")
            else:
                window = self._claim(planned)
            self._take(curation_in_force(window.plan, self.settings), in_force(window.plan, self.trainer))
            self._tell(window)
            while window.state not in TERMINAL:
                window = self._step(window)
                self._tell(window)
            return result_of(window)

    def _step(self, window: Window) -> Window:
        step = {
            State.CLAIMED: self._curate,
            State.CURATED: self._train,
            State.TRAINED: self._evaluate,
            State.EVALUATED: self._register,
        }[window.state]
        try:
            return step(window)
        except GateError as error:  # it is the window's data: the same again would fail again, so the rows go back to the pool
            return self._advance(window, State.REJECTED, reason=str(error))

    def _claim(self, planned: WindowPlan) -> Window:
        if planned.terms is None:
            planned = msgspec.structs.replace(planned, terms=terms_of(self.trainer, self.settings))
        self._check(planned)
        return windows.claim(self.store, planned, clock=self.clock)

    def _check(self, planned: WindowPlan) -> None:
        if self.steps.check is not None:
            self.steps.check(self._job(planned))

    def _job(self, planned: WindowPlan, train: Sequence[Example] = ()) -> TrainJob:
        return TrainJob(
            base_model=self.base_model,
            parent=self.students / planned.parent if planned.parent else None,
            render=msgspec.structs.replace(self.view, distilled_on=coverage(train)),
            recipe=self.trainer.recipe,
            mode=planned.mode,
            settings=self.trainer.training(),
            out=self.data.root / planned.key / "training",
            seed=self.trainer.seed,
        )

    def _advance(self, window: Window, to: State, **facts: Any) -> Window:
        return windows.advance(self.store, window, to, clock=self.clock, **facts)

    def _tell(self, window: Window) -> None:
        self.say({"event": "state", "window": window.key, "state": window.state.value, "reason": window.reason, "student": window.student})

    def _curate(self, window: Window) -> Window:
        self._check(window.plan)  # once more, for a window that goes on: its parent may be gone, and curation asks it
        curated = self.data.curate(window, self._tools(window), self.clock)
        facts = CuratedFacts(
            manifest_hash=curated.manifest_hash,
            waterfall=curated.waterfall,
            histograms=curated.histograms,
            trained=tokens_by_key(curated.train),
            validation=tuple(sorted({e.key for e in curated.validation})),
            returned=tuple(sorted(curated.returned)),
        )
        return self._advance(window, State.CURATED, curated=facts)

    def _train(self, window: Window) -> Window:
        train, validation, _ = self._examples(window)
        result = self.steps.train(self._job(window.plan, train), train, validation, self._train_progress)
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
        assert window.trained is not None
        train, _, erasures = self._examples(window)
        check_measured(window, self.trainer)
        folder = registered(self.students, window)
        if folder is None:
            check_candidate(self.state / window.trained.candidate)
            manifest = manifest_of(window, train, self.base_model, self.trainer, erasures.offset)
            folder = students.register(self.students, self.state / window.trained.candidate, manifest)
        if self.steps.shadow is not None:
            self.steps.shadow(folder, self.say)
        if self.steps.publish is not None:
            self.steps.publish(announcement(folder, window, self.clock()))
        return self._advance(window, State.REGISTERED, student=folder.name)

    def _examples(self, window: Window) -> tuple[list[Example], list[Example], Erasures]:
        """The window's examples, past the data gate, and the erasures that they were checked against."""
        train, validation = self.data.examples(window, self._tools(window), self.clock)
        erasures = self.steps.erasures() if self.steps.erasures is not None else NOBODY
        self.data.check(train, validation, erasures)
        self._check_parent(window)
        return train, validation, erasures

    def _check_parent(self, window: Window) -> None:
        """A student that was taken out of its lineage after the window was planned is not trained further."""
        if window.plan.mode == "continue" and self.steps.barred is not None and window.plan.parent in self.steps.barred():
            raise GateError(f"the parent {window.plan.parent} was rolled back, revoked or rejected since the window was planned")

    def _tools(self, window: Window) -> Tools:
        parent = self.students / window.plan.parent if window.plan.parent else None
        return Tools(
            replay=self.steps.replay,
            action_loss=self.steps.action_loss(parent) if self.steps.action_loss is not None and parent is not None else None,
            report=lambda stage, kept: self.say({"event": "stage", "stage": stage, "kept": kept}),
        )

    def _train_progress(self, event: TrainEvent) -> None:
        self.say({"event": "train", **msgspec.to_builtins(event)})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One trainer of a lineage on this machine; the compare-and-set of states is what holds between machines."""
        folder = self.data.root
        folder.mkdir(parents=True, exist_ok=True)
        refusal = RetryableError("another trainer is running a window", where=str(folder), fix="Wait for it, or stop it.")
        with alone(folder / ".lock", refusal):
            yield
