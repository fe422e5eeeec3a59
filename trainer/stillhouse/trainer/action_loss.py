"""How well a parent student predicts the teacher's actions: what decides whether compressed reasoning still leads to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from stillhouse.schemas.ledger import chance
from stillhouse.schemas.messages import Message
from stillhouse.schemas.render import Renderer
from stillhouse.trainer.collate import IGNORED, Row
from stillhouse.trainer.curate.counting import RenderCounter
from stillhouse.trainer.curate.draft import Draft
from stillhouse.trainer.curate.fit import fit
from stillhouse.trainer.examples import Example
from stillhouse.trainer.loss import mean_loss
from stillhouse.trainer.settings import CurationSettings


class ParentLoss:
    """Implements curation's `ActionLoss` under a student. The model is loaded at the first measurement.

    Args:
        base_model: folder of the base model.
        parent: folder of the student.
        renderer: the view of the student that is to be trained; it shows reasoning.
        settings: `[window]`: how conversations are cut, and how many are measured.
        threads: of torch; None: as torch decides.
    """

    def __init__(self, base_model: Path, parent: Path, renderer: Renderer, settings: CurationSettings, threads: int | None = None) -> None:
        self._base_model, self._parent, self._renderer = base_model, parent, renderer
        self._settings, self._threads = settings, threads
        self._model: Any = None

    def __call__(self, drafts: Sequence[Draft], /) -> float | None:
        """Nats a token of the calls and replies, reasoning not counted, over a draw of the drafts; None when none of them fits."""
        seed = self._settings.seed
        drawn = sorted(drafts, key=lambda d: (chance(seed, "reasoning", d.key), d.key))[: self._settings.reasoning_rows]
        fitted = fit(drawn, self._settings, RenderCounter(self._renderer))
        rows = [row for d in drawn for e in fitted.examples.get(d.key, ()) for row in action_rows(e, self._renderer)]
        return mean_loss(self._loaded(), rows, self._renderer.spec.pad_id) if rows else None

    def _loaded(self) -> Any:
        if self._model is None:
            if self._threads:
                torch.set_num_threads(self._threads)
            base = AutoModelForCausalLM.from_pretrained(self._base_model, dtype=torch.float32, local_files_only=True, use_safetensors=True)
            self._model = PeftModel.from_pretrained(base, self._parent)
        return self._model


def action_rows(example: Example, renderer: Renderer) -> list[Row]:
    """The example as a row whose loss is on what its targets do, not on how they reason; no row where nothing is left.

    An action's tokens are those that its turn ends with in the same way when it is written without reasoning.
    """
    ids, mask = renderer.encode(example.bare, example.tools, supervised=example.mask)
    labels = [IGNORED] * len(ids)
    targets = [m.message for m in example.messages if m.supervised]
    for turn, message in zip(_runs(mask), targets, strict=True):
        for place in range(turn.stop - _shared_end(ids[turn.start : turn.stop], _bare(message, renderer)), turn.stop):
            labels[place] = ids[place]
    row = Row(ids, labels, 1.0)
    return [row] if row.supervised else []


def _bare(message: Message, renderer: Renderer) -> list[int]:
    """The tokens of a target that does not say how it came to its action."""
    plain = Message(role="assistant", content=message.content, tool_calls=message.tool_calls)
    ids, mask = renderer.encode([plain], supervised=[True])
    return [token for token, wanted in zip(ids, mask, strict=True) if wanted]


def _runs(mask: Sequence[bool]) -> list[range]:
    """The maximal runs of supervised positions: one a target, since every turn begins with tokens that are not its own."""
    starts = [i for i, wanted in enumerate(mask) if wanted and not (i and mask[i - 1])]
    return [range(i, next((k for k in range(i, len(mask)) if not mask[k]), len(mask))) for i in starts]


def _shared_end(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both end with."""
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    return shared
