"""How a client frames its events: under the id that the schema registry gave, where one is configured and answers.

The registry is asked on a thread of its own: the sender's has events to write down. Until it answers, events are written in
single-object encoding, which readers tell apart by the first byte: a registry that is away stops no agent.
"""

import logging
import threading
from collections.abc import Callable
from time import monotonic

from stillhouse.schemas import codec_schemas
from stillhouse.schemas.errors import PermanentError, RetryableError
from stillhouse.schemas.fingerprint import Schema
from stillhouse.schemas.registry import ConfluentRegistry

_log = logging.getLogger("stillhouse.sdk")
_NAME = "AgentEvent"


class Framing:
    """The id to write events with, and the schema of ids that the spool still has.

    Args:
        registry: None: single-object encoding always.
        topic: whose values they are; the subject is `<topic>-value`, as Confluent's serializers name it.
        retry_s: seconds between attempts while the registry is away.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: ConfluentRegistry | None, topic: str, retry_s: float = 30.0, clock: Callable[[], float] = monotonic
    ) -> None:
        self._registry, self._subject, self._retry_s, self._clock = registry, f"{topic}-value", retry_s, clock
        self._id: int | None = None
        self._asked: threading.Thread | None = None
        self._ask_at = float("-inf")

    def schema_id(self, wait: float = 0.0) -> int | None:
        """The id, or None: single-object encoding.

        Args:
            wait: seconds to wait for the answer, at most.
        """
        if self._registry is None or self._id is not None:
            return self._id
        if self._clock() >= self._ask_at:
            self._ask_at = self._clock() + self._retry_s
            self._asked = threading.Thread(target=self._ask, args=(self._registry,), name="stillhouse-registry", daemon=True)
            self._asked.start()
        if wait and self._asked is not None:
            self._asked.join(wait)
        return self._id

    def by_fingerprint(self, fingerprint: bytes, /) -> Schema | None:
        """None: every fingerprint that a client writes is released."""
        return None

    def by_id(self, schema_id: int, /) -> Schema | None:
        """The schema that this id was given for: ours, or what the registry says of an earlier release's.

        Raises:
            SchemaPendingError: the registry is away.
        """
        if schema_id == self._id:
            return codec_schemas.newest(_NAME).schema
        return None if self._registry is None else self._registry.by_id(schema_id)

    def _ask(self, registry: ConfluentRegistry) -> None:
        try:
            self._id = registry.register(self._subject, codec_schemas.newest(_NAME).schema)
        except RetryableError as error:
            _log.warning("events are written without the schema registry until it answers: %s", error)
        except PermanentError as error:
            self._ask_at = float("inf")
            _log.error("events are written without the schema registry: %s", error)
