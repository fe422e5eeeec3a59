"""Section `[signals]`."""

from typing import Annotated, Literal

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Budget = Annotated[int, msgspec.Meta(ge=0)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1)]


class SignalsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a window is asked for, and what of the students' failures goes back to the teacher.

    How many new successes are enough for a window, and how old they may become, says `[window]` (`min_kept`, `max_age_hours`).

    Attributes:
        group: the consumer group.
        refresh: seconds between two looks at the store, at least.
        bucket: seconds of watermark within which a reason asks for a window once.
        lookback_days: rows that were appended earlier are not looked at.
        failure_rate: of a family's student runs, from which its failures ask for a window,
        failure_runs: when there were so many runs,
        failure_successes: and the teacher has so many new successes to learn from.
        coverage_successes: new successes of a family that no window had, which ask for one.
        teacher_successes: new successes of a teacher that no window had, which ask for one.
        tasks: what is issued: nothing, or tasks for the teacher.
        tasks_per_day: of all routes and families, by UTC day.
        family_tasks_per_day: of one route and family.
        budgets: instead of that, by `family` or `route/family`.
        failures_days: failures that were appended earlier are not run again.
        runner_days: a family whose runner was not seen for longer has none.
        relabel: where a family has no runner, issue a task that asks for the teacher's next action at each state that the student visited;
            `python -m stillhouse.streams.relabel` serves those. Off: nothing is issued for such a family.
        relabel_states: of one run, the most states at which the teacher is asked.
        teacher_url: an OpenAI-compatible address, for what came through no route.
        teacher_model: the model's name there.
        teacher_key: name of the environment variable that holds the key; empty sends none.
        teacher_version: change it when the teacher behaves differently under the same name: it is asked again then.
        lease: seconds that one worker's look at the store may take before another may look.
        session_timeout: seconds after which the group gives a dead worker's partitions to others.
        patience: seconds without a look at the store after which the process is not healthy.
    """

    group: str = "stillhouse-signals"
    refresh: Seconds = 60.0
    bucket: Seconds = 3600.0
    lookback_days: Seconds = 30.0
    failure_rate: Rate = 0.3
    failure_runs: Count = 20
    failure_successes: Count = 10
    coverage_successes: Count = 10
    teacher_successes: Count = 20
    tasks: Literal["off", "on"] = "on"
    tasks_per_day: Budget = 1000
    family_tasks_per_day: Budget = 100
    budgets: dict[str, Budget] = {}
    failures_days: Seconds = 7.0
    runner_days: Seconds = 1.0
    relabel: bool = False
    relabel_states: Count = 8
    teacher_url: str = ""
    teacher_model: str = ""
    teacher_key: str = ""
    teacher_version: str = ""
    lease: Seconds = 60.0
    session_timeout: Seconds = 10.0
    patience: Seconds = 600.0

    def budget_of(self, route: str, family: str) -> int:
        """Tasks a day of one route and family."""
        for name in (f"{route}/{family}", family):
            if name in self.budgets:
                return self.budgets[name]
        return self.family_tasks_per_day
