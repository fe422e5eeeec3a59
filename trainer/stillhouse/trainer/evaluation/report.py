"""What an evaluation says: per policy, part and family. Plain data; `summarise` makes it from episodes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, quantiles

import msgspec

from stillhouse.schemas.events import Usage
from stillhouse.trainer.evaluation.benchmark import Episode, Price
from stillhouse.trainer.evaluation.costs import Cost, cost_of
from stillhouse.trainer.evaluation.stats import Difference, Rate, paired_difference, pass_hat_k, rate


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a request took."""

    p50_s: float
    p95_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on some tasks.

    Attributes:
        success: of the tasks that have an outcome.
        errors: episodes without one, by reason: the policy's server gave no answer. They are in no rate.
        format_error_rate: malformed messages among all of the policy's messages.
        pass_hat: k -> pass^k, for k up to the runs that every task had; only when tasks ran more than once.
    """

    success: Rate
    episodes: int
    errors: dict[str, int]
    steps_mean: float | None
    format_error_rate: float | None
    error_calls: int
    latency: Latency | None
    usage: Usage
    pass_hat: dict[int, float] = {}


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of the replica: computing (None when it does not say), and held.

    The parts of a policy run at once, so its time is measured as a whole and a part's is a share of it: in each segment of the
    journal by the seconds that the requests of the part's episodes were in flight. The parts together are the policy.
    """

    busy_s: float | None
    wall_s: float


class PartReport(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one part. `held`, and with it a replica's cost, is the part's share of the policy's: see `Held`."""

    part: str
    all: Measured
    families: dict[str, Measured]
    held: Held
    cost: Cost


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One policy: every part, and all of them together."""

    name: str
    model: str
    all: Measured
    parts: dict[str, PartReport]
    held: Held
    cost: Cost


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """All policies on the same tasks."""

    benchmark: str
    policies: tuple[PolicyReport, ...]

    def policy(self, name: str) -> PolicyReport:
        """The report of one policy.

        Raises:
            KeyError: it was not evaluated.
        """
        found = {p.name: p for p in self.policies}
        return found[name]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a task: an episode, or the reason why there is none."""

    task_id: str
    family: str
    part: str
    episode: Episode | None = None
    error: str | None = None


def measure(outcomes: Sequence[Outcome]) -> Measured:
    """The figures of one policy on some tasks. A task that ran several times enters rates with its mean."""
    episodes = [o.episode for o in outcomes if o.episode]
    runs: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        runs[episode.task_id].append(episode.success)
    steps = sum(e.steps for e in episodes)
    return Measured(
        success=rate([fmean(found) for found in runs.values()]),
        episodes=len(episodes),
        errors=dict(Counter(o.error for o in outcomes if o.error)),
        steps_mean=steps / len(episodes) if episodes else None,
        format_error_rate=sum(e.format_errors for e in episodes) / steps if steps else None,
        error_calls=sum(e.error_calls for e in episodes),
        latency=_latency([s for e in episodes for s in e.latency_s]),
        usage=total_usage(e.usage for e in episodes),
        pass_hat=_pass_hat(list(runs.values())),
    )


def part_report(part: str, outcomes: Sequence[Outcome], held: Held, price: Price) -> PartReport:
    """One policy on one part.

    Raises:
        UsageError: the list price is not known.
    """
    families: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        families[outcome.family].append(outcome)
    everything = measure(outcomes)
    by_family = {name: measure(found) for name, found in sorted(families.items())}
    return PartReport(part=part, all=everything, families=by_family, held=held, cost=_cost(price, outcomes, held))


def policy_report(
    name: str, model: str, parts: Sequence[PartReport], outcomes: Sequence[Outcome], held: Held, price: Price
) -> PolicyReport:
    """One policy over all parts.

    Raises:
        UsageError: the list price is not known.
    """
    cost = _cost(price, outcomes, held)
    return PolicyReport(name=name, model=model, all=measure(outcomes), parts={p.part: p for p in parts}, held=held, cost=cost)


def compare(first: Iterable[Episode], second: Iterable[Episode]) -> Difference:
    """The difference of two policies' success on the tasks that both ran.

    Raises:
        UsageError: there is no such task.
    """
    one, two = _means(first), _means(second)
    return paired_difference([(one[t], two[t]) for t in sorted(set(one) & set(two))])


def total_held(times: Iterable[Held]) -> Held:
    """The sum; computing is not known when one of them does not say it, or when there is none."""
    given = list(times)
    busy = [h.busy_s for h in given if h.busy_s is not None]
    known = bool(given) and len(busy) == len(given)
    return Held(busy_s=sum(busy) if known else None, wall_s=sum(h.wall_s for h in given))


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The sum; a field that nobody gave stays null."""
    given = list(usages)
    sums = {}
    for name in Usage.__struct_fields__:
        values = [v for v in (getattr(u, name) for u in given) if v is not None]
        sums[name] = sum(values) if values else None
    return Usage(**sums)


def _cost(price: Price, outcomes: Sequence[Outcome], held: Held) -> Cost:
    episodes = [o.episode for o in outcomes if o.episode]
    usage = total_usage(e.usage for e in episodes)
    return cost_of(price, usage, busy_s=held.busy_s, wall_s=held.wall_s, successes=sum(e.success for e in episodes))


def _means(episodes: Iterable[Episode]) -> dict[tuple[str, str], float]:
    runs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for episode in episodes:
        runs[episode.part, episode.task_id].append(episode.success)
    return {key: fmean(found) for key, found in runs.items()}


def _latency(seconds: Sequence[float]) -> Latency | None:
    if len(seconds) < 2:
        return Latency(p50_s=seconds[0], p95_s=seconds[0]) if seconds else None
    cuts = quantiles(seconds, n=20, method="inclusive")
    return Latency(p50_s=cuts[9], p95_s=cuts[18])


def _pass_hat(runs: Sequence[Sequence[bool]]) -> dict[int, float]:
    fewest = min((len(found) for found in runs), default=0)
    counts = [(sum(found), len(found)) for found in runs]
    return {k: pass_hat_k(counts, k) for k in range(1, fewest + 1)} if fewest > 1 else {}
