"""Which judgement counts: the latest unretracted word of each source, and the most trusted source's for the trajectory."""

from collections.abc import Sequence

from stillhouse.schemas.events import AgentEvent, FeedbackGiven, FeedbackSource, Outcome, TrajectoryEnded
from stillhouse.schemas.trajectory import Judgement

TRUST = (FeedbackSource.VERIFIER, FeedbackSource.USER, FeedbackSource.PROXY, FeedbackSource.JUDGE, FeedbackSource.UNKNOWN)
"""Most trusted first."""

_RANK = {source.value: rank for rank, source in enumerate(TRUST)}

Feedback = tuple[AgentEvent, FeedbackGiven]


def judgements(feedback: Sequence[Feedback]) -> tuple[Judgement, ...]:
    """Each source's latest unretracted word on the trajectory and on each step, most trusted first.

    Args:
        feedback: by (occurred_at, event_id).
    """
    if not feedback:
        return ()
    gone = _gone(feedback)
    # A bare label that follows a verdict of the same source adds to it and does not replace it.
    alive = sorted((pair for pair in feedback if pair[0].event_id not in gone), key=_says_something)
    latest = {(body.source, body.step): (event, body) for event, body in alive}
    words = [
        Judgement(
            source=body.source.value,
            outcome=body.outcome,
            reward=body.reward,
            version=body.source_version,
            step=body.step,
            event_id=event.event_id,
        )
        for event, body in latest.values()
    ]
    return tuple(sorted(words, key=lambda word: (_RANK[word.source], -1 if word.step is None else word.step)))


def decide(words: Sequence[Judgement], end: TrajectoryEnded | None) -> tuple[Outcome, str, float | None]:
    """Outcome, who said it (a source, `ended` or nobody; an end that names its verifier is the verifier's word) and reward.

    A word that names no outcome (a label, a bare rating) leaves the outcome to the next source.
    """
    whole = [word for word in words if word.step is None]
    for word in whole:
        if word.outcome is not Outcome.UNKNOWN:
            return word.outcome, word.source, word.reward
    rated = next((word.reward for word in whole if word.reward is not None), None)
    if end is None:
        return Outcome.UNKNOWN, "", rated
    source = "" if end.outcome is Outcome.UNKNOWN else FeedbackSource.VERIFIER.value if end.verifier else "ended"
    return end.outcome, source, rated if rated is not None else end.reward


def _says_something(pair: Feedback) -> bool:
    return pair[1].outcome is not Outcome.UNKNOWN or pair[1].reward is not None


def _gone(feedback: Sequence[Feedback]) -> set[str]:
    """Ids of what was revised, retracted, or is a retraction itself. A source takes back only its own words."""
    sources = {event.event_id: body.source for event, body in feedback}
    gone: set[str] = set()
    for place, (event, body) in enumerate(feedback):
        if body.revises is not None and body.revises != event.event_id and sources.get(body.revises) is body.source:
            gone.add(body.revises)
        if body.retracted:
            gone.add(event.event_id)
            if body.revises is None:  # takes back all that the source had said of it by then
                gone.update(e.event_id for e, b in feedback[:place] if b.source is body.source and b.step == body.step)
    return gone
