"""Attestation over the wire: let the engine score the student's probes, and judge what it says."""

from collections.abc import Sequence
from typing import Any

from stillhouse.serving.gateway.attest import judge, judge_greedy
from stillhouse.serving.gateway.attest_greedy import actions
from stillhouse.serving.gateway.backend import Attestation, EngineError
from stillhouse.serving.gateway.engine_students import Student
from stillhouse.serving.gateway.engine_wire import Choice, EngineRefusedError, EngineWire

PROBE_S = 60.0


async def prove(wire: EngineWire, student: Student) -> Attestation:
    """Compare what an engine serves under a student's name with the student. One probe at a time: traffic goes first.

    Raises:
        EngineError: the engine is away, too slow, busy or broken.
    """
    served: list[Sequence[float]] = []
    for probe in student.probes:
        scores = await _scores(wire, student.card.name, probe.ids)
        if scores is None:
            return await _greedy(wire, student)
        served.append(scores)
    return judge(student.probes, served)


async def _scores(wire: EngineWire, name: str, ids: Sequence[int]) -> Sequence[float] | None:
    """The log-probability of each token but the first; None from an engine that does not tell."""
    try:
        choice = await _complete(
            wire, {"model": name, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0.0}
        )
    except EngineRefusedError:
        return None
    found = (choice.logprobs.token_logprobs if choice.logprobs else None) or []
    scores = [score for score in found[1:] if score is not None]
    return scores if len(found) == len(ids) == len(scores) + 1 else None


async def _greedy(wire: EngineWire, student: Student) -> Attestation:
    equal = []
    for action in actions(student.probes, student.spec.stop_ids):
        asked = {"model": student.card.name, "prompt": list(action.prompt), "max_tokens": len(action.written), "temperature": 0.0}
        try:
            choice = await _complete(wire, asked | {"return_token_ids": True, "skip_special_tokens": False})
        except EngineRefusedError as error:
            raise EngineError(f"the engine refuses a probe: {error.what}", reason="upstream", where=wire.url) from error
        if choice.token_ids is not None:
            equal.append(tuple(choice.token_ids) == action.written)
        else:
            equal.append(choice.text == student.renderer.decode(action.written))
    return judge_greedy(equal)


async def _complete(wire: EngineWire, body: dict[str, Any]) -> Choice:
    return (await wire.complete(body, PROBE_S)).choices[0]
