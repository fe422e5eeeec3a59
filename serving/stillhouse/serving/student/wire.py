"""OpenAI's requests as typed values, and its error objects. Unknown fields are let through, wrong ones are named."""

from typing import Any, TypeVar

import msgspec

from stillhouse.schemas.errors import UsageError
from stillhouse.serving.student.generation import Sampling

MAX_LOGPROBS = 20
R = TypeVar("R", bound="Common")


class BadRequestError(UsageError):
    """The request is not one that can be answered (HTTP 400). `param` names the field."""

    def __init__(self, what: str, *, param: str | None = None, fix: str = "") -> None:
        self.param = param
        super().__init__(what, fix=fix)


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool = False


class Common(msgspec.Struct, kw_only=True):
    """What both kinds of request have."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1

    def check(self) -> None:
        """Refuse what the types allow and the server does not.

        Raises:
            BadRequestError: a value is out of range or not offered.
        """
        if self.n not in (None, 1):
            raise BadRequestError("only n=1 is offered", param="n", fix="Send the request n times.")
        if self.temperature is not None and not 0.0 <= self.temperature <= 2.0:
            raise BadRequestError("temperature must be between 0 and 2", param="temperature")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise BadRequestError("top_p must be above 0 and at most 1", param="top_p")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise BadRequestError("max_tokens must not be negative", param="max_tokens")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise BadRequestError("seed must fit in 64 bits", param="seed")
        if any(not s for s in self.stops):
            raise BadRequestError("a stop string must not be empty", param="stop")

    @property
    def sampling(self) -> Sampling:
        """How to choose tokens; OpenAI's defaults."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, 1.0 if self.top_p is None else self.top_p, self.seed)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """See the base class."""
        super().check()
        if not self.messages:
            raise BadRequestError("messages must not be empty", param="messages")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise BadRequestError(f"top_logprobs must be 0 to {MAX_LOGPROBS}", param="top_logprobs")
        if self.tool_choice not in (None, "auto", "none"):
            raise BadRequestError("a student is not forced to call a tool", param="tool_choice", fix='Use "auto" or "none".')
        if self.response_format and self.response_format.get("type") != "text":
            raise BadRequestError("only text is offered", param="response_format")
        for i, tool in enumerate(self.tools or []):
            function = tool.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise BadRequestError("a tool needs a function with a name", param=f"tools[{i}]")
            if not isinstance(function.get("parameters", {}), dict | None):
                raise BadRequestError("a tool's parameters must be a JSON Schema object", param=f"tools[{i}].function.parameters")

    @property
    def limit(self) -> int | None:
        """Tokens to generate at most, when the caller said so."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(Common, kw_only=True):
    """`POST /v1/completions`. `return_token_ids` and `return_tokens_as_token_ids` mean what they mean to vLLM."""

    prompt: str | list[Any]
    echo: bool = False
    logprobs: int | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    def check(self) -> None:
        """See the base class."""
        super().check()
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise BadRequestError(f"logprobs must be 0 to {MAX_LOGPROBS}", param="logprobs")

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids.

        Raises:
            BadRequestError: neither.
        """
        given = self.prompt
        if isinstance(given, str) or (given and all(type(t) is int for t in given)):
            return [given]
        if given and all(isinstance(p, str) or (isinstance(p, list) and p and all(type(t) is int for t in p)) for p in given):
            return list(given)
        raise BadRequestError("prompt must be a text, token ids, or a list of either", param="prompt")


def read(body: bytes, kind: type[R]) -> R:
    """A request from its JSON.

    Raises:
        BadRequestError: not JSON, or not such a request.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise BadRequestError(f"the request body cannot be read: {error}") from error
    request.check()
    return request


def error_object(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage_object(prompt: int, generated: int, reused: int) -> dict[str, Any]:
    """`usage`, with what came from the cache."""
    details = {"cached_tokens": reused}
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated, "prompt_tokens_details": details}
