"""The demo's teacher: the scripted stand-in as a process, or any real one by its address."""

import sys
from dataclasses import dataclass

from stillhouse.examples.order_desk.pricing import NOTICE, PRICED_AS, STAND_IN


@dataclass(frozen=True)
class Teacher:
    """An OpenAI-compatible address.

    Args:
        url: up to and with `/v1`.
        model: the name to send.
        priced_as: the model whose list price its tokens cost.
        notice: what every artefact says of it.
    """

    url: str
    model: str
    priced_as: str
    notice: str


def command(latency_ms: int) -> tuple[str, ...]:
    """The command that starts the stand-in."""
    return (sys.executable, "-m", "stillhouse.examples.order_desk.teacher", "--port", "0", "--latency-ms", str(latency_ms))


def stand_in(announced: str) -> Teacher:
    """The stand-in at the address that it announced."""
    return Teacher(url=announced.rstrip("/").removesuffix("/v1") + "/v1", model=STAND_IN, priced_as=PRICED_AS, notice=NOTICE)


def real(url: str, model: str) -> Teacher:
    """A real teacher; its tokens cost what genai-prices lists for it."""
    return Teacher(url=url, model=model, priced_as=model, notice=f"teacher {model} at {url}, priced by genai-prices")
