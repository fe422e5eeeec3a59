"""The shadow that a window makes of its new student before anybody is told of it: registered, then shadow, then canary."""

from pathlib import Path

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.sdk.config import Config
from stillhouse.sdk.routes import RouteSettings
from stillhouse.sdk.store import Store
from stillhouse.trainer import shadow as shadows
from stillhouse.trainer import students
from stillhouse.trainer.decisions import NOBODY, ReadErasures
from stillhouse.trainer.evaluation.engine import student_engine
from stillhouse.trainer.jobs_parts import Progress
from stillhouse.trainer.settings import TrainerSettings

LOG = "shadow.log"


def route_of(config: Config, lineage: str) -> RouteSettings | None:
    """The route that takes a lineage's students; None where there is none."""
    routes = config.sections("routes", RouteSettings).items()
    return next((route for name, route in routes if (route.lineage or name) == lineage), None)


def as_served(config: Config, lineage: str, settings: shadows.ShadowSettings) -> shadows.ShadowSettings:
    """With the time limit and the price of the route that takes the lineage's students, where there is one."""
    route = route_of(config, lineage)
    if route is None:
        return settings
    return msgspec.structs.replace(settings, timeout_s=route.student_timeout_s, replica_usd_per_hour=route.replica_usd_per_hour)


class ShadowOfNew:
    """Implements `jobs_parts.MakeShadow` with a student server of its own. No gate reads what it finds.

    Args:
        config: routes, and the folders of logs and reports.
        store: the trajectories and windows.
        trainer: `[trainer]`: how many steps, and tokens of an answer.
        base_model: folder of the base model.
        erasures: whose rows may not be used; None: what is stored counts.
    """

    def __init__(self, config: Config, store: Store, trainer: TrainerSettings, base_model: Path, erasures: ReadErasures | None) -> None:
        self._config, self._store, self._trainer = config, store, trainer
        self._base_model, self._erasures = base_model, erasures

    def __call__(self, folder: Path, progress: Progress, /) -> None:
        """Make it and keep the report; nothing where one of these weights is kept already, or no step is left that it has not seen.

        Raises:
            StillhouseError: as `shadow.shadow` and `student_engine`.
        """
        run, student = self._config.state_dir("run"), students.load(folder)
        if shadows.load(run, folder) is not None:
            return
        given = shadows.ShadowSettings(steps=self._trainer.shadow_steps, seed=self._trainer.seed, answer_tokens=self._trainer.answer_tokens)
        settings = as_served(self._config, student.manifest.lineage, given)

        def tell(done: int, total: int) -> None:
            progress({"event": "shadow", "done": done, "total": total})

        erasures = self._erasures() if self._erasures is not None else NOBODY
        log = self._config.state_dir("logs") / LOG
        with student_engine(self._base_model, log=log, threads=self._trainer.threads or 2) as server:
            try:
                report = shadows.shadow(
                    student, self._store, server, self._base_model, settings, alone=True, erasures=erasures, progress=tell
                )
            except UsageError as error:  # a young store: all that the teacher did was learned from
                progress({"event": "shadow", "done": 0, "total": 0, "skipped": str(error)})
                return
        shadows.save(report, run)
