"""The folder of a training job: whose it is, its checkpoints, its candidate and its result."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.trainer.files import sync_folder
from stillhouse.trainer.training_job import TrainResult


class JobFolder:
    """One job's folder.

    Args:
        root: the folder; made when it is not there.
    """

    def __init__(self, root: Path) -> None:
        self.checkpoints, self.candidate = root / "checkpoints", root / "candidate"
        self._root, self._job, self._result = root, root / "job.json", root / "result.json"

    def open(self, digest: str) -> None:
        """Claim the folder for a job.

        Raises:
            PermanentError: it belongs to a job with other inputs.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        if self._job.exists() and json.loads(self._job.read_bytes())["digest"] != digest:
            raise PermanentError(
                "the folder holds another training job: its data, settings or parent differ",
                where=str(self._root), fix="Give another folder, or delete this one.",
            )  # fmt: skip
        _replace(self._job, json.dumps({"digest": digest}).encode())

    def result(self) -> TrainResult | None:
        """The result, when the job was finished."""
        if not self._result.exists():
            return None
        return msgspec.json.decode(self._result.read_bytes(), type=TrainResult, dec_hook=lambda kind, value: kind(value))

    def finish(self, result: TrainResult) -> None:
        """Keep the result; the checkpoints (of which some are pickles) are no longer needed."""
        sync_folder(self.candidate)
        _replace(self._result, msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2))
        shutil.rmtree(self.checkpoints)


def save_adapter(model: Any, folder: Path, *, base_name: str) -> None:
    """Write a model's adapter alone: configuration and safetensors, without a model card or paths of this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors writes 0600, and servers may run as another user


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
