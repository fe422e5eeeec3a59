"""The models that can be asked for by name: the base model and the adapters loaded now, each with its render spec."""

import json
from dataclasses import dataclass
from pathlib import Path

from stillhouse.schemas.errors import PermanentError, UsageError
from stillhouse.schemas.render import Renderer, RenderSpec
from stillhouse.schemas.student_folder import RENDER
from stillhouse.serving.student.adapters import BASE_MANIFEST, Adapter, AdapterRefusedError


class NoSuchModelError(UsageError):
    """No model of that name is served."""


@dataclass(frozen=True, slots=True)
class Served:
    """One name that callers may use. `adapter` is empty for the base model."""

    name: str
    adapter: str
    root: Path
    renderer: Renderer
    stop_ids: frozenset[int]
    context: int
    digest: str = ""


class Catalog:
    """Names to models.

    Args:
        model: the base model's folder.
        name: what the base model is called; its own name, else the folder's, when not given.
        context: tokens that the model can hold.
        eos: the model's own end tokens.
    """

    def __init__(self, model: Path, name: str | None, context: int, eos: frozenset[int]) -> None:
        self._model, self._context, self._eos = model, context, eos
        self.base = name or _own_name(model)
        spec = RenderSpec.load(model / RENDER) if (model / RENDER).is_file() else RenderSpec(context_limit=context).for_model(model)
        self._served = {self.base: self._entry(self.base, "", model, spec)}

    def get(self, name: str) -> Served:
        """The model of a name.

        Raises:
            NoSuchModelError: there is none.
        """
        if name not in self._served:
            raise NoSuchModelError(f"The model `{name}` does not exist", fix=f"Served now: {', '.join(self._served)}.")
        return self._served[name]

    def all(self) -> list[Served]:
        """The base model first, then adapters as they were loaded."""
        return list(self._served.values())

    def check_new(self, adapter: Adapter) -> bool:
        """Whether an adapter is new; False when the very same is loaded under this name.

        Raises:
            AdapterRefusedError: the name means something else already.
        """
        known = self._served.get(adapter.name)
        if known is None:
            return True
        if known.digest != adapter.digest:
            raise AdapterRefusedError(
                f"The lora adapter '{adapter.name}' has already been loaded with other content",
                fix="A name is never reused: caches go by it. Load it under its own name.",
            )
        return False

    def add(self, adapter: Adapter) -> None:
        """List a loaded adapter. One without a render.json is rendered like the base model."""
        spec = adapter.render or self._served[self.base].renderer.spec
        self._served[adapter.name] = self._entry(adapter.name, adapter.name, adapter.folder, spec, adapter.digest)

    def remove(self, name: str) -> None:
        """Unlist an adapter.

        Raises:
            NoSuchModelError: none of that name is loaded.
        """
        if name == self.base or name not in self._served:
            raise NoSuchModelError(f"The lora adapter '{name}' cannot be found")
        del self._served[name]

    def _entry(self, name: str, adapter: str, root: Path, spec: RenderSpec, digest: str = "") -> Served:
        stop = frozenset(spec.stop_ids) or self._eos
        return Served(name, adapter, root, Renderer(spec, self._model), stop, min(spec.context_limit, self._context), digest)


def _own_name(model: Path) -> str:
    manifest = model / BASE_MANIFEST
    if not manifest.is_file():
        return model.name
    try:
        return str(json.loads(manifest.read_bytes())["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"not a manifest of a base model: {error}", where=str(manifest)) from error
