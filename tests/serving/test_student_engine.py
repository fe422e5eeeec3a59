"""The engine generates what transformers generates, token for token, in whatever company and with whatever cache."""

import random
from collections.abc import Sequence
from functools import partial
from threading import Event

import pytest
import torch

from stillhouse.serving.student.catalog import NoSuchModelError
from stillhouse.serving.student.engine import Engine
from stillhouse.serving.student.generation import Generation, Result, Sampling
from stillhouse.serving.student.loop import ModelLoop
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.scheduler import Limits
from tests.serving.conftest import VOCABULARY, random_llama

pytestmark = pytest.mark.model


def prompts(n: int, seed: int = 0, low: int = 1, high: int = 40) -> list[tuple[int, ...]]:
    r = random.Random(seed)
    return [tuple(r.randrange(VOCABULARY) for _ in range(r.randint(low, high))) for _ in range(n)]


def reference(prompt: Sequence[int], max_new: int) -> list[int]:
    """What transformers' own greedy generation says, one sequence alone."""
    ids = torch.tensor([list(prompt)])
    out = random_llama().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def engine(*, kv_bytes: int = 1 << 24, **limits: object) -> Engine:
    return Engine(ServedModel(random_llama()), Limits(wait_s=0.0, **limits), kv_bytes)  # type: ignore[arg-type]


def run(e: Engine, asked: Sequence[tuple[int, ...]], max_new: int = 12, **kw: object) -> list[Result]:
    results: dict[int, Result] = {}
    for i, prompt in enumerate(asked):
        e.submit(Generation("", prompt, max_new, frozenset(), partial(results.__setitem__, i), **kw))  # type: ignore[arg-type]
    while len(results) < len(asked):
        e.step()
    return [results[i] for i in range(len(asked))]


def test_alone_and_in_a_ragged_batch_equal_generate() -> None:
    asked = prompts(9)
    expected = [reference(p, 12) for p in asked]
    assert [run(engine(), [p])[0].tokens for p in asked] == expected
    assert [r.tokens for r in run(engine(batch=4), asked)] == expected


def test_prefill_in_pieces_changes_nothing() -> None:
    asked = prompts(4, seed=1, low=30, high=60)
    assert [r.tokens for r in run(engine(prefill_tokens=7), asked)] == [reference(p, 12) for p in asked]


def test_turns_of_a_conversation_reuse_their_keys_and_values() -> None:
    e, conversations = engine(), prompts(3, seed=2)
    reusable: list[int] = []
    for turn in range(3):
        results = run(e, conversations)
        assert [r.tokens for r in results] == [reference(p, 12) for p in conversations]
        if turn:
            assert [r.reused for r in results] == reusable
        # The newest token was chosen but never computed; everything before it is there.
        reusable = [len(p) + len(r.tokens) - 1 for p, r in zip(conversations, results, strict=True)]
        extra = prompts(3, seed=10 + turn, low=2, high=9)
        conversations = [p + tuple(r.tokens) + x for p, r, x in zip(conversations, results, extra, strict=True)]


def test_a_shared_prefix_is_computed_once_even_when_all_come_at_the_same_time() -> None:
    head = prompts(1, seed=3, low=100, high=100)[0]
    asked = [head + p for p in prompts(5, seed=4, low=1, high=5)]
    e = engine(prefill_tokens=40)
    assert [r.tokens for r in run(e, asked)] == [reference(p, 12) for p in asked]
    assert e.counters.prefilled < 100 + 5 * 6


@pytest.mark.parametrize("kv_bytes", [1 << 26, 0])
def test_long_shared_prompts_are_attended_in_one_place_and_say_the_same(kv_bytes: int) -> None:
    head, other = prompts(1, seed=20, low=280, high=280)[0], prompts(1, seed=21, low=400, high=400)[0]
    asked = [*(head + p for p in prompts(4, seed=22, high=20)), other, other[:300] + head[:30], *prompts(2, seed=23)]
    e = engine(prefill_tokens=70, kv_bytes=kv_bytes)
    for _ in range(2):  # the second time from the cache
        results = run(e, asked)
        assert [r.tokens for r in results] == [reference(p, 12) for p in asked]
    assert [r.reused for r in results] == ([len(p) - 1 for p in asked] if kv_bytes else [0] * len(asked))
    if kv_bytes:
        assert e.counters.prefilled < 280 + 400 + len(asked) * 31 + 280


def test_a_long_prompt_is_shared_between_turns_of_conversations_that_have_it() -> None:
    head = prompts(1, seed=24, low=270, high=270)[0]
    e, conversations = engine(batch=3), [head + p for p in prompts(4, seed=25)]
    for turn in range(3):
        results = run(e, conversations)
        assert [r.tokens for r in results] == [reference(p, 12) for p in conversations]
        conversations = [p + tuple(r.tokens) + x for p, r, x in zip(conversations, results, prompts(4, seed=26 + turn), strict=True)]


def test_a_prompt_whose_beginning_was_cut_is_still_attended_where_it_lies() -> None:
    head, tail, other = (prompts(1, seed=s, low=n, high=n)[0] for s, n in ((32, 8), (33, 600), (34, 30)))
    e = engine(prefill_tokens=70)
    run(e, [head + tail])
    run(e, [head + other])  # parts from it early: the cache cuts there
    before, asked = e._lanes.capacity, head + tail + other
    [result] = run(e, [asked])
    assert result.tokens == reference(asked, 12) and result.reused >= len(head + tail)
    assert e._lanes.capacity == before < len(tail), "lanes are all as long as the longest"


def test_scores_of_a_long_prompt_are_the_models_own() -> None:
    prompt = prompts(1, seed=30, low=420, high=420)[0]
    result = run(engine(prefill_tokens=100), [prompt], max_new=0, logprobs=0, score_prompt=True)[0]
    with torch.inference_mode():
        scores = torch.log_softmax(random_llama()(torch.tensor([prompt])).logits[0], -1)
    got = [x.logprob for x in result.prompt_logprobs if x]
    assert got == pytest.approx([scores[i, t].item() for i, t in enumerate(prompt[1:])], abs=1e-4)


def test_no_room_for_a_cache_still_answers_right() -> None:
    e = engine(kv_bytes=0)
    asked = prompts(2, seed=5)
    for _ in range(2):
        assert [r.tokens for r in run(e, asked)] == [reference(p, 12) for p in asked]
    assert (e.counters.reused, e.tree.bytes) == (0, 0)


def test_lanes_grow_beyond_their_first_capacity() -> None:
    asked = [*prompts(1, seed=6, low=250, high=250), *prompts(2, seed=7)]
    assert [r.tokens for r in run(engine(), asked, max_new=20)] == [reference(p, 20) for p in asked]


def test_prompt_scores_are_the_models_own_and_need_no_generation() -> None:
    prompt = prompts(1, seed=8, low=30, high=30)[0]
    e = engine(prefill_tokens=8)
    run(e, [prompt])  # fills the cache, which scoring must not use
    result = run(e, [prompt], max_new=0, logprobs=2, score_prompt=True)[0]
    with torch.inference_mode():
        scores = torch.log_softmax(random_llama()(torch.tensor([prompt])).logits[0], -1)
    expected = [scores[i, t].item() for i, t in enumerate(prompt[1:])]
    assert result.prompt_logprobs[0] is None
    got = [x for x in result.prompt_logprobs if x]
    assert [x.logprob for x in got] == pytest.approx(expected, abs=1e-4)
    assert [x.top[0][0] for x in got] == scores[:-1].argmax(-1).tolist()
    assert result.tokens == []


def test_a_seed_makes_sampled_tokens_repeatable_in_any_company() -> None:
    prompt, others = prompts(1, seed=9)[0], prompts(3, seed=11)
    seeded = Sampling(temperature=1.0, top_p=0.9, seed=5)
    alone = run(engine(), [prompt], sampling=seeded)[0].tokens
    assert run(engine(), [*others, prompt], sampling=seeded)[-1].tokens == alone
    assert run(engine(), [prompt], sampling=Sampling(temperature=1.0, seed=6))[0].tokens != alone


def test_a_nucleus_of_nothing_but_the_best_token_is_greedy() -> None:
    prompt = prompts(1, seed=12)[0]
    assert run(engine(), [prompt], sampling=Sampling(temperature=1.0, top_p=1e-9, seed=1))[0].tokens == reference(prompt, 12)


def test_stop_tokens_end_a_generation() -> None:
    prompt = prompts(1, seed=13)[0]
    expected = reference(prompt, 12)
    results: list[Result] = []
    e = engine()
    e.submit(Generation("", prompt, 12, frozenset({expected[3]}), results.append))
    while not results:
        e.step()
    assert results[0].tokens == expected[: expected.index(expected[3]) + 1]
    assert results[0].finish == "stop"


def test_cancelled_work_frees_its_lane() -> None:
    results: list[Result] = []
    e = engine(batch=1)
    key = e.submit(Generation("", (1, 2, 3), 400, frozenset(), results.append))
    e.step()
    e.cancel(key)
    e.cancel(key)
    assert [r.finish for r in results] == ["abort"]
    assert len(run(e, [(4, 5)])[0].tokens) == 12


def test_a_request_that_an_unloading_overtook_ends_alone() -> None:
    e, prompt = engine(), prompts(1)[0]
    loop, results, ended = ModelLoop(e), dict[str, Result](), Event()

    def end(name: str, result: Result) -> None:
        results[name] = result
        if len(results) == 2:
            ended.set()

    for adapter in ("gone", ""):  # both are in the queue before the first step
        loop.submit(Generation(adapter, prompt, 12, frozenset(), partial(end, adapter)))
    loop.start()
    assert ended.wait(60)
    loop.stop()
    loop.join(60)
    assert isinstance(results["gone"].error, NoSuchModelError)
    assert (results[""].error, results[""].tokens) == (None, reference(prompt, 12))
