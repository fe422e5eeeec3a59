"""Redaction on the caller's own thread, for programs that write an event down before they emit it."""

from collections.abc import Callable

import msgspec

from stillhouse.schemas.events import AgentEvent
from stillhouse.sdk.handover import CleanEvent, snapshot
from stillhouse.sdk.redaction import RedactionError, Redactor, why_refused
from stillhouse.sdk.stats import Counters, Refusal


def cleaned(event: AgentEvent, redactor: Redactor, counters: Counters, refused: Callable[[Refusal, str], bool]) -> CleanEvent | None:
    """The event without its secrets, which are counted; None when it is refused.

    Args:
        event: any.
        redactor: the rules.
        counters: where what is found is counted.
        refused: told why an event is refused, and of which error.
    """
    try:
        try:
            clean, found = redactor.redact(event)
        except UnicodeEncodeError:  # a lone surrogate, which a snapshot replaces
            clean, found = redactor.redact(msgspec.json.decode(snapshot(event), type=AgentEvent))
        data = snapshot(clean)
    except RedactionError as error:
        refused(why_refused(error), type(error).__name__)
    except Exception as error:  # noqa: BLE001 - as at emit: whatever it was passed, the program must not notice
        refused(Refusal.BAD_INPUT, type(error).__name__)
    else:
        if found:
            counters.redact(found)
        return CleanEvent(data)
    return None
