"""Stage `compress`: long reasoning to the few sentences that carry the action. Extractive: every word is the teacher's own."""

import re
from collections import Counter as Tally
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from stillhouse.schemas.literals import entities, given, names, occurs, searchable
from stillhouse.schemas.messages import Message
from stillhouse.trainer.curate.counting import Counter
from stillhouse.trainer.curate.draft import Draft, DraftStep, with_steps
from stillhouse.trainer.curate.stage import StageResult
from stillhouse.trainer.settings import CurationSettings

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LITERAL, _LAST, _FIRST = 2.0, 1.5, 0.5  # what a sentence is worth for a value of the action, for concluding, for opening


class ActionLoss(Protocol):
    """The parent student's mean negative log-likelihood of the supervised calls and replies, in nats a token."""

    def __call__(self, drafts: Sequence[Draft], /) -> float | None:
        """Measure drafts whose reasoning is as it shall be tried; None when nothing could be measured."""
        ...


def compress(
    drafts: Sequence[Draft],
    settings: CurationSettings,
    counter: Counter,
    action_loss: ActionLoss | None = None,
    off: Collection[str] = (),
) -> StageResult:
    """Compress reasoning over the budget; leave it whole in a family where the parent predicts the action worse without the rest.

    Args:
        drafts: what came in; all are kept.
        settings: budget and tolerated loss.
        counter: the student's view; where it hides reasoning there is nothing to do, and nothing is done.
        action_loss: measures under the parent; None (a first window) compresses unmeasured.
        off: families that are left whole without measuring: what the training side found holds for the validation side.
    """
    if not counter.shows_reasoning:
        hidden = sum(s.action.reasoning is not None for d in drafts for s in d.steps)
        return StageResult("compress", tuple(drafts), {}, {"hidden": hidden})
    short = {d.key: _with_reasoning(d, lambda m: shorten(m, settings.reasoning_tokens, counter.words)) for d in drafts}
    measured = _measure(drafts, short, action_loss) if action_loss else {}
    off = {*off, *(f for f, m in measured.items() if _worse(m, settings.reasoning_loss))}
    kept = tuple(d if d.family in off else short[d.key] for d in drafts)
    changed = Tally(d.family for d, new in zip(drafts, kept, strict=True) for a, b in zip(d.steps, new.steps, strict=True) if a != b)
    return StageResult("compress", kept, {}, {"compressed": sum(changed.values()), "measured": measured, "off": sorted(off)})


def shorten(message: Message, budget: int, count: Callable[[str], int]) -> str | None:
    """The sentences of a message's reasoning that say most about its action, in their order, within a budget of tokens."""
    text = message.reasoning
    if not text or count(text) <= budget:
        return text
    sentences = [s for s in _SENTENCE.split(text.strip()) if s]
    wanted = _values(message)
    order = sorted(range(len(sentences)), key=lambda i: (-_worth(sentences, i, wanted), i))
    chosen: list[int] = []
    for i in order:
        if count(_joined(sentences, [*chosen, i])) <= budget:
            chosen.append(i)
    return _joined(sentences, chosen) if chosen else _cut(sentences[order[0]], budget, count)


def _values(message: Message) -> frozenset[str]:
    """What the action is about: the values of its calls and their tools, or the values of its reply."""
    calls = frozenset(v for c in message.tool_calls for v in (*given(c.arguments), c.name))
    return calls or entities(message.text) | names(message.text)


def _worth(sentences: Sequence[str], i: int, wanted: frozenset[str]) -> float:
    text = searchable(sentences[i])
    hits = sum(occurs(value, text) for value in wanted)
    return _LITERAL * hits + _LAST * (i == len(sentences) - 1) + _FIRST * (i == 0)


def _joined(sentences: Sequence[str], chosen: Sequence[int]) -> str:
    return " ".join(sentences[i] for i in sorted(chosen))


def _cut(sentence: str, budget: int, count: Callable[[str], int]) -> str | None:
    """The beginning of a sentence that alone is over the budget."""
    words = sentence.split()
    while words and count(" ".join(words)) > budget:
        words.pop()
    return " ".join(words) or None


def _with_reasoning(draft: Draft, reasoning: Callable[[Message], str | None]) -> Draft:
    def step(s: DraftStep) -> DraftStep:
        found = reasoning(s.action) if s.supervised else s.action.reasoning
        return s if found == s.action.reasoning else msgspec.structs.replace(s, action=msgspec.structs.replace(s.action, reasoning=found))

    return with_steps(draft, [step(s) for s in draft.steps])


def _worse(measured: dict[str, float | None], tolerated: float) -> bool:
    full, compressed = measured["full"], measured["compressed"]
    return full is not None and compressed is not None and compressed - full > tolerated


def _measure(drafts: Sequence[Draft], short: dict[str, Draft], action_loss: ActionLoss) -> dict[str, dict[str, float | None]]:
    """By family: nats a token of the action with all, compressed and no reasoning; families that nothing was compressed in are left out."""
    out = {}
    for family in sorted({d.family for d in drafts}):
        full = [d for d in drafts if d.family == family]
        compressed = [short[d.key] for d in full]
        if compressed == full:
            continue
        bare = [_with_reasoning(d, lambda m: None) for d in full]
        out[family] = {name: action_loss(rows) for name, rows in (("full", full), ("compressed", compressed), ("none", bare))}
    return out
