"""The student server: one model, its adapters, and the generations asked of them. Everything but HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from tokenizers import Tokenizer

from stillhouse.schemas.precision import Precision
from stillhouse.serving.student.adapters import Adapter, AdapterNotFoundError, AdapterRefusedError, base_identity, read_adapter
from stillhouse.serving.student.catalog import Catalog, Served
from stillhouse.serving.student.engine import Engine
from stillhouse.serving.student.generation import Generation, Result
from stillhouse.serving.student.loop import ModelLoop
from stillhouse.serving.student.metrics import Metrics
from stillhouse.serving.student.model import ServedModel
from stillhouse.serving.student.replies import Reply
from stillhouse.serving.student.scheduler import Limits
from stillhouse.serving.student.wire import BadRequestError, Common, CompletionRequest

log = structlog.get_logger()


class StudentServer:
    """A loaded model with its thread.

    Args:
        folder: the base model's folder.
        students: the folder that adapters must lie in; anywhere when None.
        name: what the base model is called.
        limits: the scheduler's bounds.
        kv_bytes: bytes of keys and values kept for later requests.
        precision: of matrix products.

    Raises:
        PermanentError: the folder holds no model that can be served.
    """

    def __init__(
        self,
        folder: Path,
        *,
        students: Path | None,
        name: str | None = None,
        limits: Limits,
        kv_bytes: int,
        precision: Precision = "auto",
    ) -> None:
        self.metrics = Metrics()
        model = ServedModel.load(folder, precision)
        self.engine = Engine(model, limits, kv_bytes, on_step=lambda rows, _: self.metrics.rows.observe(rows))
        self.catalog = Catalog(folder, name, model.context, model.eos)
        self.loop = ModelLoop(self.engine)
        self.metrics.watch(self.engine, lambda: len(self.catalog.all()) - 1)
        self._base_sha256 = base_identity(folder)
        self._students = students.resolve() if students else None
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._loading = asyncio.Lock()

    def reply(self, served: Served, request: Common, prompt: Sequence[int], limit: int, logprobs: int | None, *, live: bool) -> Reply:
        """A generation for a request, not begun yet.

        Args:
            served: the model asked for.
            request: its sampling, stop and echo fields count.
            prompt: token ids.
            limit: tokens to generate at most; the context may allow fewer.
            logprobs: as in `Generation`.
            live: whether pieces are wanted as they come.

        Raises:
            BadRequestError: the prompt is empty, too long, or has ids that are no tokens.
        """
        room = served.context - len(prompt)
        echo = isinstance(request, CompletionRequest) and request.echo
        if not prompt:
            raise BadRequestError("the prompt has no tokens", param="prompt")
        if room < (1 if limit else 0):
            raise BadRequestError(
                f"This model's maximum context length is {served.context} tokens, but the request has {len(prompt)}.", param="messages"
            )
        if not all(0 <= t < self.engine.model.vocabulary for t in prompt):
            raise BadRequestError(f"token ids must be 0 to {self.engine.model.vocabulary - 1}", param="prompt")
        stop = frozenset(request.stop_token_ids or ()) | (frozenset() if request.ignore_eos else served.stop_ids)
        generation = Generation(
            served.adapter,
            tuple(prompt),
            min(limit, room),
            stop,
            _nobody,
            request.sampling,
            logprobs,
            score_prompt=echo and logprobs is not None,
        )
        return Reply(self.loop, generation, served.renderer.decode, request.stops, live=live)

    def encode(self, text: str) -> list[int]:
        """The token ids of a raw text, special tokens read as such."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    async def load(self, name: str, path: str) -> None:
        """Load an adapter and list it. The same name with the same content again changes nothing.

        Raises:
            AdapterNotFoundError: it is not there.
            AdapterRefusedError: it is not served, with the reason.
        """
        async with self._loading:
            folder = self._folder(path)
            adapter = await asyncio.to_thread(read_adapter, name, folder, self.engine.model.weights.shapes, self._base_sha256)
            if not self.catalog.check_new(adapter):
                return
            await self._in_thread(lambda: self._install(adapter))
            self.catalog.add(adapter)
            log.info("adapter_loaded", name=name, path=str(folder), sha256=adapter.digest)

    async def unload(self, name: str) -> None:
        """Unload an adapter; what still runs on it ends.

        Raises:
            NoSuchModelError: none of that name is loaded.
        """
        async with self._loading:
            self.catalog.remove(name)
            await self._in_thread(lambda: self._uninstall(name))
            log.info("adapter_unloaded", name=name)

    def _folder(self, path: str) -> Path:
        folder = (self._students / path if self._students else Path(path)).resolve()
        if self._students and not folder.is_relative_to(self._students):
            raise AdapterRefusedError(
                "adapters are loaded from the students folder only", where=str(folder), fix=f"Put it in {self._students}."
            )
        if not folder.is_dir():
            raise AdapterNotFoundError("No adapter found", where=str(folder))
        return folder

    def _install(self, adapter: Adapter) -> None:
        self.engine.model.weights.add(adapter.name, adapter.factors)

    def _uninstall(self, name: str) -> None:
        self.engine.forget(name)
        self.engine.model.weights.remove(name)

    async def _in_thread(self, command: Callable[[], None]) -> None:
        """Run a command in the model's thread and wait for it."""
        here, done = asyncio.get_running_loop(), asyncio.Event()
        errors: list[Exception] = []

        def run() -> None:
            try:
                command()
            except Exception as error:  # noqa: BLE001 (raised where it was asked for)
                errors.append(error)
            here.call_soon_threadsafe(done.set)

        self.loop.call(run)
        await done.wait()
        if errors:
            raise errors[0]

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self.loop.is_alive()

    def close(self, timeout: float) -> None:
        """Stop the model's thread."""
        self.loop.stop()
        self.loop.join(timeout)


def _nobody(result: Result) -> None:
    """`Reply` sets the callback."""
