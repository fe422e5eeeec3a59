"""Where the literals of actions come from: the check that pruning takes away no value that is still used."""

from collections.abc import Sequence, Set
from typing import NamedTuple

from stillhouse.schemas.literals import entities, given, names, occurs, searchable, told
from stillhouse.trainer.curate.calls import Call
from stillhouse.trainer.curate.draft import Draft, DraftStep

At = tuple[int, int]
"""A step and the place of a call in it; place -1 is what the step says beside its calls."""
SAYS = -1


class Use(NamedTuple):
    """A literal that an action uses. `sources` are the calls whose results gave it, all of them if nothing else did."""

    at: At
    sources: frozenset[At]


class Provenance:
    """The uses of a trajectory, with all calls still in it.

    Args:
        draft: the trajectory.
        calls: its calls.
    """

    def __init__(self, draft: Draft, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._steps = draft.steps
        self._fixed = _fixed_texts(draft)
        self._results = [(c.at, searchable(c.result.text)) for c in calls if c.result is not None]
        self._said = [(at, text) for i, s in enumerate(draft.steps) for at, text in _said(i, s)]
        self.uses: list[Use] = []
        self.unsourced: set[At] = set()
        for i, step in enumerate(draft.steps):
            for at, literals, strict in _used(i, step):
                self._trace(at, literals, strict)

    def holds(self, removed: Set[At]) -> bool:
        """Whether every literal that had a source still has one when these calls are gone."""
        return not any(use.sources <= removed for use in self.uses if not gone(self._steps, use.at, removed))

    def used_later(self, call: Call, removed: Set[At]) -> bool:
        """Whether a literal of the call's result occurs in a later action, reasoning or reply. A result without literals counts as used."""
        literals = told(call.result.text) if call.result is not None else frozenset()
        later = [text for at, text in self._said if at[0] > call.step and not gone(self._steps, at, removed)]
        return not literals or any(occurs(literal, text) for literal in literals for text in later)

    def _trace(self, at: At, literals: frozenset[str], strict: frozenset[str]) -> None:
        for literal in sorted(literals):
            if any(occurs(literal, text) for step, text in self._fixed if step <= at[0]):
                continue
            sources = frozenset(a for a, text in self._results if a[0] < at[0] and occurs(literal, text))
            if sources:
                self.uses.append(Use(at, sources))
            elif literal in strict:
                self.unsourced.add(at)


def gone(steps: Sequence[DraftStep], at: At, removed: Set[At]) -> bool:
    """Whether a call, or what a step says, is no longer there: a step goes with the last of its calls."""
    step, place = at
    if at in removed or (step, SAYS) in removed:
        return True
    calls = steps[step].action.tool_calls
    return place == SAYS and bool(calls) and all((step, i) in removed for i in range(len(calls)))


def _fixed_texts(draft: Draft) -> list[tuple[int, str]]:
    """What no pruning takes away, with the first step that has seen it: prompt, tools, instruction, users' messages."""
    start = [m.text for m in draft.head()] + [draft.trajectory.task.instruction or ""]
    texts = [(0, searchable(t)) for t in start] + [(0, searchable(list(draft.trajectory.tools)))]
    for i, step in enumerate(draft.steps):
        texts += [(i, searchable(m.text)) for m in step.state]
        texts += [(i + 1, searchable(m.text)) for m in step.observation if m.role != "tool"]
    return texts


def _said(index: int, step: DraftStep) -> list[tuple[At, str]]:
    """What an action says, searchable: its calls' arguments, its reasoning and its content."""
    calls = [((index, i), searchable(c.arguments)) for i, c in enumerate(step.action.tool_calls)]
    return [*calls, ((index, SAYS), searchable(f"{step.action.reasoning or ''} {step.action.text}"))]


def _used(index: int, step: DraftStep) -> list[tuple[At, frozenset[str], frozenset[str]]]:
    """The literals of an action by place; of prose only numbers, ids and e-mails must have a source, names only keep theirs."""
    calls = [((index, i), found, found) for i, c in enumerate(step.action.tool_calls) for found in [given(c.arguments)]]
    prose = f"{step.action.reasoning or ''} {step.action.text}"
    strict = entities(prose)
    return [*calls, ((index, SAYS), strict | names(prose), strict)]
