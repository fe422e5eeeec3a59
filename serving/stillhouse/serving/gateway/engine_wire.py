"""An engine's HTTP: OpenAI's completions and models, vLLM's calls for adapters. What goes wrong there is an `EngineError` here."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import orjson

from stillhouse.schemas.errors import PermanentError
from stillhouse.serving.gateway.backend import EngineError
from stillhouse.serving.gateway.sse import Splitter, payload

CONNECT_S, CONTROL_S, LOAD_S = 2.0, 10.0, 120.0
_STARTED = "process_start_time_seconds "


class NotServedError(EngineError):
    """The engine answers, but does not know the student: it was restarted, or somebody unloaded it."""


class EngineRefusedError(PermanentError):
    """The engine understood the request and refuses it (HTTP 4xx)."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the engine lists. `root` is the folder it was loaded from; a student's `parent` is the base model's name."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[Listed, ...]


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of tokens; the first of a text has none."""

    token_logprobs: list[float | None] | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A completion, or a piece of one. An engine may leave out the token ids."""

    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a prompt that were not computed anew."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's usage object."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What `/v1/completions` answers: all of it, or a chunk."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class EngineWire:
    """Calls of one engine.

    Args:
        url: its address, with or without `/v1`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._made: aiohttp.ClientSession | None = None

    async def models(self) -> tuple[Listed, ...]:
        """What it serves, the base model first.

        Raises:
            EngineError: it is away, too slow or broken.
        """
        data = await self._get("/v1/models")
        with self._translated():
            return msgspec.json.decode(data, type=_Models).data

    async def started(self) -> str:
        """When its process began, as its metrics say it; empty when they do not.

        Raises:
            EngineError: it is away or too slow.
        """
        try:
            text = (await self._get("/metrics")).decode(errors="replace")
        except (NotServedError, EngineRefusedError):
            return ""
        return next((line.removeprefix(_STARTED) for line in text.splitlines() if line.startswith(_STARTED)), "")

    async def load(self, name: str, folder: Path) -> None:
        """Load an adapter. One of that name that is loaded already is left: attestation says which one it is.

        Raises:
            EngineError: it is away, too slow or broken.
            PermanentError: it refuses.
        """
        try:
            await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, LOAD_S)
        except NotServedError as error:
            fix = "It must see the folder of students; vLLM needs --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."
            raise PermanentError(f"the engine does not load {name}: {error.what}", where=self.url, fix=fix) from error
        except EngineRefusedError as error:
            if "already been loaded" not in error.what or "other content" in error.what:
                raise

    async def unload(self, name: str) -> None:
        """Unload an adapter; one that is not loaded is no error.

        Raises:
            EngineError: it is away, too slow or broken.
        """
        try:
            await self._post("/v1/unload_lora_adapter", {"lora_name": name}, CONTROL_S)
        except (NotServedError, EngineRefusedError):
            return

    async def complete(self, body: dict[str, Any], timeout_s: float | None = None) -> Completion:
        """One completion.

        Raises:
            EngineError: it is away, too slow, busy or broken.
            NotServedError: it does not know the model.
            EngineRefusedError: it refuses the request.
        """
        data = await self._post("/v1/completions", body, timeout_s)
        with self._translated():
            whole = _decode(data)
            if not whole.choices:
                raise ValueError("no choices")
            return whole

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[Completion]:
        """The chunks of a streamed completion, up to `[DONE]`. Closing it ends the completion at the engine too.

        Raises:
            EngineError: as `complete`, also in the middle.
        """
        with self._translated():
            async with self._session.post(f"{self.url}/v1/completions", data=orjson.dumps(body), headers=_JSON) as response:
                if response.status != 200:
                    self._refused(response.status, await response.read())
                splitter = Splitter()
                async for data in response.content.iter_any():
                    for event in splitter.feed(data):
                        said = payload(event)
                        if said == b"[DONE]":
                            return
                        if said:
                            yield _decode(said)
            raise ValueError("the stream ended in the middle")

    async def close(self) -> None:
        """Close connections."""
        if self._made is not None:
            await self._made.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:  # made in the loop that uses it
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            self._made = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, trust_env=False)
        return self._made

    async def _get(self, path: str) -> bytes:
        return await self._ask("GET", path, None, CONTROL_S)

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float | None) -> bytes:
        return await self._ask("POST", path, orjson.dumps(body), timeout_s)

    async def _ask(self, method: str, path: str, data: bytes | None, timeout_s: float | None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        with self._translated():
            async with self._session.request(method, self.url + path, data=data, headers=_JSON, timeout=timeout) as response:
                answer = await response.read()
                if response.status != 200:
                    self._refused(response.status, answer)
                return answer

    def _refused(self, status: int, answer: bytes) -> None:
        said = _message(answer)
        if status == 404:
            raise NotServedError(said, reason="away", where=self.url)
        if status in (429, 503):
            raise EngineError(f"the engine is busy: {said}", reason="busy", where=self.url)
        if 400 <= status < 500:
            raise EngineRefusedError(said, where=self.url)
        raise EngineError(f"the engine answered {status}: {said}", reason="upstream", where=self.url)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What aiohttp and decoders raise, as `EngineError`."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise EngineError("the engine does not answer", reason="away", where=self.url) from error
        except TimeoutError as error:
            raise EngineError("the engine is too slow", reason="timeout", where=self.url) from error
        except aiohttp.ClientPayloadError as error:
            raise EngineError(f"the engine's answer broke off: {error}", reason="upstream", where=self.url) from error
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise EngineError(f"the engine does not answer: {error}", reason="away", where=self.url) from error
        except (aiohttp.ClientError, ValueError, msgspec.MsgspecError) as error:
            raise EngineError(f"the engine's answer cannot be read: {error}", reason="upstream", where=self.url) from error


_JSON = {"content-type": "application/json"}


def _decode(data: bytes) -> Completion:
    """Raises ValueError or msgspec's errors when it is no completion, or an error in its place."""
    found = msgspec.json.decode(data, type=Completion)
    if found.error:
        raise ValueError(f"it broke off: {found.error}")
    return found


def _message(answer: bytes) -> str:
    """The message of an error in OpenAI's form, else the beginning of what was answered."""
    try:
        return str(orjson.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer[:300].decode(errors="replace").strip()
