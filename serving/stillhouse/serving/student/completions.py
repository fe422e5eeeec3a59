"""`/v1/completions`: token ids (or text) in, text and log-probabilities out. With `echo` and `max_tokens=0` it only scores."""

from typing import Any

from stillhouse.serving.student.catalog import Served
from stillhouse.serving.student.generation import TokenLogprob
from stillhouse.serving.student.replies import Reply
from stillhouse.serving.student.wire import CompletionRequest, usage_object

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def completion(request: CompletionRequest, replies: list[Reply], served: Served, head: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    choices = [_choice(request, reply, served, i) for i, reply in enumerate(replies)]
    results = [r.result for r in replies]
    prompt = sum(len(r.generation.prompt) for r in replies)
    usage = usage_object(prompt, sum(len(r.tokens) for r in results), sum(r.reused for r in results))
    return {**head, "object": "text_completion", "choices": choices, "usage": usage}


def chunk(head: dict[str, Any], text: str, finish: str | None = None) -> dict[str, Any]:
    """One piece of a streamed answer."""
    return {**head, "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}]}


def _choice(request: CompletionRequest, reply: Reply, served: Served, index: int) -> dict[str, Any]:
    prompt = list(reply.generation.prompt)
    text = served.renderer.decode(prompt) + reply.text if request.echo else reply.text
    choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": reply.finish, "logprobs": None}
    if request.logprobs is not None:
        choice["logprobs"] = _logprobs(request, reply, served)
    if request.return_token_ids:
        choice |= {"token_ids": reply.result.tokens, "prompt_token_ids": prompt}
    return choice


def _logprobs(request: CompletionRequest, reply: Reply, served: Served) -> dict[str, Any]:
    result = reply.result
    tokens, found = list(result.tokens), list[TokenLogprob | None](result.logprobs)
    if request.echo:
        tokens, found = [*reply.generation.prompt, *tokens], [*result.prompt_logprobs, *found]

    def name(token: int) -> str:
        return f"token_id:{token}" if request.return_tokens_as_token_ids else served.renderer.decode([token])

    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(served.renderer.decode([token]))
    return {
        "tokens": [name(t) for t in tokens],
        "token_logprobs": [x.logprob if x else None for x in found],
        "top_logprobs": [{name(t): p for t, p in x.top} if x else None for x in found] if request.logprobs else None,
        "text_offset": offsets,
    }
