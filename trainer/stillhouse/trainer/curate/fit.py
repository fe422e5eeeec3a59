"""Stage `fit`: rendered tokens are counted, and what is over the limit is cut into steps: rows in are rows out of the trainer."""

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stillhouse.trainer.curate.counting import Counted, Counter
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.prune import Replay, without_recovery
from stillhouse.trainer.curate.stage import StageResult
from stillhouse.trainer.examples import Example, TrainMessage
from stillhouse.trainer.settings import CurationSettings

Messages = tuple[TrainMessage, ...]


class Fitted(NamedTuple):
    """The stage's result and the examples, by trajectory key."""

    result: StageResult
    examples: dict[str, tuple[Example, ...]]


def fit(drafts: Sequence[Draft], settings: CurationSettings, counter: Counter, replay: Replay | None = None) -> Fitted:
    """Make each trajectory one example, or one for each supervised step with as much context as fits.

    Recoveries go first: a failed call that stayed as context is worth less than the run in one piece. A step's context is the
    system prompt, the first user message and the last turns. A step that is too long even without turns is left out; a trajectory
    that loses all of them is `too_long`.

    Args:
        drafts: what came in.
        settings: bounds of a step's context.
        counter: the student's view.
        replay: the environment in which a trajectory without a recovery must still succeed, where there is one.
    """
    examples: dict[str, tuple[Example, ...]] = {}
    gone: dict[str, str] = {}
    notes: Tally[str] = Tally(whole=0, recoveries_dropped=0, cut=0, steps=0, steps_too_long=0)
    for draft in drafts:
        made = _fit(draft, settings, counter, replay, notes)
        if isinstance(made, str):
            gone[draft.key] = made
        else:
            examples[draft.key] = made
    kept = tuple(d for d in drafts if d.key in examples)
    return Fitted(StageResult("fit", kept, gone, {**notes, "examples": sum(map(len, examples.values()))}), examples)


def _fit(draft: Draft, settings: CurationSettings, counter: Counter, replay: Replay | None, notes: Tally[str]) -> tuple[Example, ...] | str:
    targets = [s.action for s in draft.steps if s.teaches]
    if not targets:
        return "no_supervised_tokens"
    if any(counter.unwritable(m) for m in targets):
        return "unwritable"
    for dropped, shorter in enumerate(_ever_shorter(draft, settings, replay) if not settings.per_step else ()):
        whole = shorter.conversation()
        counted = _count(shorter, whole, counter)
        if counted.total <= counter.limit:
            notes.update(whole=1, recoveries_dropped=dropped)
            return (_example(shorter, whole, None, counted.supervised),) if counted.supervised else "no_supervised_tokens"
    steps = [(k, _cut(draft, k, settings, counter)) for k, s in enumerate(draft.steps) if s.teaches]
    fitting = tuple(_example(draft, found[0], k, found[1]) for k, found in steps if found is not None)
    notes.update(cut=1, steps=len(fitting), steps_too_long=len(steps) - len(fitting))
    return fitting or "too_long"


def _ever_shorter(draft: Draft, settings: CurationSettings, replay: Replay | None) -> Iterator[Draft]:
    """The trajectory, and then with one recovery less each time."""
    shorter: Draft | None = draft
    while shorter is not None:
        yield shorter
        shorter = without_recovery(shorter, settings, replay)


def _cut(draft: Draft, k: int, settings: CurationSettings, counter: Counter) -> tuple[Messages, int] | None:
    """Step k with as many turns of context as fit, and its supervised tokens; None when it alone is too long.

    More turns are never shorter, so the number is found by bisection.
    """
    best, low, high = None, 0, min(k, settings.context_turns)
    while low <= high:
        turns = (low + high + 1) // 2 if best is not None else low
        messages = _context(draft, k, turns)
        counted = _count(draft, messages, counter)
        if counted.total <= counter.limit and counted.supervised:
            best, low = (messages, counted.supervised), turns + 1
        elif best is None:
            return None
        else:
            high = turns - 1
    return best


def _context(draft: Draft, k: int, turns: int) -> Messages:
    steps = draft.steps
    opening = [*draft.head(), *(m for m in steps[0].state if m.role == "system")]
    first = next((m for s in steps[: k + 1] for m in s.state if m.role == "user"), None)
    body = [m for s in steps[k - turns : k] for m in (*s.state, s.action, *s.observation)]
    body += steps[k].state
    if first is not None and not any(m is first for m in body):
        opening.append(first)
    context = [*opening, *(m for m in body if not any(m is o for o in opening))]
    return (*(TrainMessage(m, False) for m in context), TrainMessage(steps[k].action, True))


def _count(draft: Draft, messages: Messages, counter: Counter) -> Counted:
    return counter.count([m.message for m in messages], draft.trajectory.tools, [m.supervised for m in messages])


def _example(draft: Draft, messages: Messages, step: int | None, tokens: int) -> Example:
    return Example(
        key=draft.key,
        task_key=draft.task_key,
        tenant=draft.tenant,
        family=draft.family,
        plan=draft.plan,
        messages=messages,
        tools=draft.trajectory.tools,
        weight=draft.weight,
        side=draft.side,
        recovery=any(s.recovery for s in draft.steps),
        source=draft.source,
        step=step,
        tokens=tokens,
    )
