"""Stage `prune`: failed branches go, evidence and state stay.

Removable: (1) a failed call that the next call of the same tool corrects; (2) an exact repeat with an equal answer; (3) a branch that
its source marked as pruned; (4) a read-only call of whose answer nothing is used later. Never: a successful call of a tool that is
not known to be read-only (it may have changed state), and a failed call after which the teacher did something else (its error is
the evidence for that). A share of (1) stays as recovery. Every removal must leave a source to every literal that had one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from stillhouse.schemas.ledger import chance
from stillhouse.schemas.messages import Message
from stillhouse.schemas.trajectory import Trajectory
from stillhouse.trainer.curate.calls import Call, calls_of, read_only
from stillhouse.trainer.curate.draft import Draft, DraftStep, with_steps
from stillhouse.trainer.curate.provenance import SAYS, At, Provenance, gone
from stillhouse.trainer.curate.stage import StageResult, transform
from stillhouse.trainer.settings import CurationSettings

RETRY, REPEAT, BRANCH, READ = "corrected_retry", "repeat", "branch", "unused_read"


class Replay(Protocol):
    """Runs a trajectory's actions in its environment."""

    def __call__(self, trajectory: Trajectory, actions: Sequence[Message]) -> bool | None:
        """Whether the task still succeeds; None when there is no environment for this trajectory."""
        ...


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """A pruned trajectory and the calls that went, by rule; `recoveries` and `evidence` count failed calls that stayed."""

    draft: Draft
    removed: dict[str, int]
    recoveries: int
    evidence: int


def prune(drafts: Sequence[Draft], settings: CurationSettings, replay: Replay | None = None) -> StageResult:
    """Prune every trajectory; one that was changed and no longer succeeds in its environment is dropped as `replay_failed`."""
    calls: Counter[str] = Counter()
    notes: Counter[str] = Counter()

    def change(draft: Draft) -> Draft | str:
        if draft.label:  # its context is the state that it is about
            return draft
        pruned = prune_draft(draft, settings)
        verdict = None
        if replay is not None and pruned.removed:
            verdict = replay(draft.trajectory, [s.action for s in pruned.draft.steps])
            notes["replayed"] += verdict is not None
        if verdict is False:
            return "replay_failed"
        calls.update(pruned.removed)
        notes.update(recoveries=pruned.recoveries, evidence=pruned.evidence)
        return pruned.draft

    result = transform("prune", drafts, change)
    return result._replace(notes={"calls": dict(sorted(calls.items())), **dict(sorted(notes.items()))})


def prune_draft(draft: Draft, settings: CurationSettings) -> Pruned:
    """One trajectory without its failed branches."""
    work = _Work(draft, settings)
    recoveries = work.retries()
    work.repeats()
    work.branches()
    work.unused_reads()
    steps = _rebuilt(draft.steps, work.removed, recoveries)
    stays = [c for c in work.calls if c.failed and c.at not in work.removed and c.at not in recoveries]
    return Pruned(draft=with_steps(draft, steps), removed=dict(work.counts), recoveries=len(recoveries), evidence=len(stays))


def without_recovery(draft: Draft, settings: CurationSettings, replay: Replay | None = None) -> Draft | None:
    """A pruned trajectory without its last recovery that may go; None when there is none.

    One stays whose error is the only source of a value that is used, or without which the task no longer succeeds in its environment.
    """
    work = _Work(draft, settings)
    recoveries = [c.at for c in work.calls if draft.steps[c.step].recovery]
    for at in reversed(recoveries):
        before = work.removed
        if not work.remove([at], RETRY):
            continue
        shorter = with_steps(draft, _rebuilt(draft.steps, work.removed, set(recoveries) - work.removed))
        if replay is None or replay(draft.trajectory, [s.action for s in shorter.steps]) is not False:
            return shorter
        work.removed = before
    return None


class _Work:
    """What is removed so far, and the rules that add to it."""

    def __init__(self, draft: Draft, settings: CurationSettings) -> None:
        self.draft, self.settings = draft, settings
        self.steps = draft.steps
        self.calls = calls_of(draft.steps)
        self.reads = read_only(draft.trajectory.tools, settings.read_only_tools)
        self.provenance = Provenance(draft, self.calls)
        self.removed: set[At] = set()
        self.counts: Counter[str] = Counter()

    def retries(self) -> set[At]:
        """Rule 1. Returns the failed calls that stay as masked context: the drawn share, and those whose error is a value's source."""
        recoveries: set[At] = set()
        for call in self.calls:
            if not self._corrected(call):
                continue
            alone = len(self.steps[call.step].action.tool_calls) == 1
            drawn = chance(self.settings.seed, "recovery", self.draft.key, *call.at) < self.settings.recovery_share
            if alone and (drawn or not self.remove([call.at], RETRY)):
                recoveries.add(call.at)
            elif not alone:
                self.remove([call.at], RETRY)
        return recoveries

    def repeats(self) -> None:
        """Rule 2: of two equal calls with equal answers the later one goes, or the earlier where the later one is evidence."""
        first: dict[tuple[str, str], Call] = {}
        for call in self.calls:
            if call.at in self.removed or call.result is None:
                continue
            same = (call.identity, call.result.text)
            earlier = first.get(same)
            if earlier is None or not self._remove_one_of((call, earlier), REPEAT):
                first.setdefault(same, call)
            elif earlier.at in self.removed:
                first[same] = call

    def branches(self) -> None:
        """Rule 3: runs of steps that their source marked as pruned go whole, or not at all."""
        for run in _marked_runs(self.steps):
            calls = [c for c in self.calls if c.step in run]
            if not any(self._changed_state(c) for c in calls) and all(map(self._droppable, run)):
                self.remove([*(c.at for c in calls), *((i, SAYS) for i in run)], BRANCH, len(run))

    def unused_reads(self) -> None:
        """Rule 4, last call first, so that a chain of unused look-ups goes whole.

        A value that came from nowhere may have been computed from any answer: then no answer counts as unused.
        """
        if any(not gone(self.steps, at, self.removed) for at in self.provenance.unsourced):
            return
        for call in reversed(self.calls):
            unused = call.call.name in self.reads and not call.failed and call.at not in self.removed
            if unused and not self.provenance.used_later(call, self.removed):
                self.remove([call.at], READ)

    def _corrected(self, call: Call) -> bool:
        """Whether the next actions call the same tool until it succeeds."""
        if not call.failed or (call.step, SAYS) in self.removed:
            return False
        for i in range(call.step + 1, len(self.steps)):
            if _interrupted(self.steps[i - 1], self.steps[i]):
                return False
            same = [c for c in self.calls if c.step == i and c.call.name == call.call.name]
            if not same:
                return False
            if any(not c.failed and c.result is not None for c in same):
                return True
        return False

    def _remove_one_of(self, calls: Iterable[Call], rule: str) -> bool:
        return any(not self._never(c) and self.remove([c.at], rule) for c in calls)

    def _never(self, call: Call) -> bool:
        return self._changed_state(call) or (call.failed and not self._goes_on_with(call))

    def _changed_state(self, call: Call) -> bool:
        return not call.failed and call.call.name not in self.reads

    def _goes_on_with(self, call: Call) -> bool:
        """Whether the next action calls the same tool again; otherwise the error was the reason for something else."""
        later = self.steps[call.step + 1 :]
        return bool(later) and not _interrupted(self.steps[call.step], later[0]) and call.call.name in _tools(later[0])

    def _droppable(self, index: int) -> bool:
        """A step may go when no person answered it and something follows."""
        return index + 1 < len(self.steps) and all(m.role == "tool" for m in self.steps[index].observation)

    def remove(self, ats: Sequence[At], rule: str, count: int = 1) -> bool:
        """Remove these, unless a value would lose its source or a person their question."""
        after = self.removed | set(ats)
        going = {step for step, _ in ats if gone(self.steps, (step, SAYS), after)}
        if not all(map(self._droppable, going)) or not self.provenance.holds(after):
            return False
        self.removed = after
        self.counts[rule] += count
        return True


def _interrupted(step: DraftStep, following: DraftStep) -> bool:
    return any(m.role != "tool" for m in (*step.observation, *following.state))


def _tools(step: DraftStep) -> set[str]:
    return {c.name for c in step.action.tool_calls}


def _marked_runs(steps: Sequence[DraftStep]) -> list[range]:
    """Maximal runs of steps with `"pruned": true` among the action's unknown fields."""
    runs, start = [], None
    for i in range(len(steps) + 1):
        marked = i < len(steps) and steps[i].action.extra.get("pruned") is True
        if marked and start is None:
            start = i
        elif not marked and start is not None:
            runs.append(range(start, i))
            start = None
    return runs


def _rebuilt(steps: Sequence[DraftStep], removed: set[At], recoveries: set[At]) -> list[DraftStep]:
    """The steps without what was removed: a call goes with its result, and what a person said to a step that goes moves on."""
    out: list[DraftStep] = []
    moved: tuple[Message, ...] = ()
    results = {c.at: c.result for c in calls_of(steps)}
    for i, step in enumerate(steps):
        if gone(steps, (i, SAYS), removed):
            moved += step.state
            continue
        dead = [at for at in removed if at[0] == i]
        lost = [results[at] for at in dead]
        calls = tuple(c for place, c in enumerate(step.action.tool_calls) if (i, place) not in removed)
        out.append(
            msgspec.structs.replace(
                step,
                state=moved + step.state,
                action=msgspec.structs.replace(step.action, tool_calls=calls) if dead else step.action,
                observation=tuple(m for m in step.observation if not any(m is gone_ for gone_ in lost)) if dead else step.observation,
                recovery=any(at[0] == i for at in recoveries),
            )
        )
        moved = ()
    return out
