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
    return {**head, "object": "text_completion", "choices": choices, "usage": _usage(replies)}


class ChunkWriter:
    """The pieces of a streamed answer, as vLLM sends them.

    Args:
        request: what was asked; `return_token_ids` adds each piece's tokens, and to the first one the prompt's.
        reply: whose pieces they are.
        head: what all have in common.
    """

    def __init__(self, request: CompletionRequest, reply: Reply, head: dict[str, Any]) -> None:
        self._request, self._reply = request, reply
        self._head = {**head, "object": "text_completion"}
        self._first = True

    def piece(self, text: str, finish: str | None = None) -> dict[str, Any]:
        """The next piece."""
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        if self._request.return_token_ids:
            choice |= {"token_ids": self._reply.take_tokens()}
            choice |= {"prompt_token_ids": list(self._reply.generation.prompt)} if self._first else {}
        self._first = False
        return {**self._head, "choices": [choice]}

    def usage(self) -> dict[str, Any] | None:
        """The piece after the last one that counts the tokens; None when nobody asked for it."""
        options = self._request.stream_options
        if options is None or not options.include_usage:
            return None
        return {**self._head, "choices": [], "usage": _usage([self._reply])}


def _usage(replies: list[Reply]) -> dict[str, Any]:
    results = [r.result for r in replies]
    prompt = sum(len(r.generation.prompt) for r in replies)
    return usage_object(prompt, sum(len(r.tokens) for r in results), sum(r.reused for r in results))


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
