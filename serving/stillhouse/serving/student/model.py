"""The language model as the engine sees it: token rows in, each of its adapter, logits of the wanted rows out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.precision import Precision, takes_bfloat16
from stillhouse.serving.student.attention import ATTENTION, Layout
from stillhouse.serving.student.lanes import KvShape, Lanes
from stillhouse.serving.student.weights import WeightSets


class ServedModel:
    """A causal model whose attention runs over lanes and whose rows may be of different adapters.

    Args:
        model: the decoder with its head, as transformers loads it.
        dtype: in which the linear layers multiply.

    Raises:
        PermanentError: an architecture whose attention the lanes do not do.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        config = model.config
        if getattr(config, "sliding_window", None) or not getattr(model, "_supports_attention_backend", False):
            raise PermanentError(
                f"{config.model_type} models are not served here", fix="Use a Llama-like model without a sliding window, or vLLM."
            )
        config._attn_implementation = ATTENTION
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = KvShape(config.num_hidden_layers, heads, head_dim)
        self.vocabulary = int(config.vocab_size)
        self.context = int(config.max_position_embeddings)
        eos = getattr(model.generation_config, "eos_token_id", None) or config.eos_token_id
        self.eos = frozenset([eos] if isinstance(eos, int) else eos or ())
        self._model = model.eval().requires_grad_(False)
        self.weights = WeightSets(model, dtype)

    @classmethod
    def load(cls, folder: Path, precision: Precision = "auto") -> "ServedModel":
        """Load a model folder (safetensors).

        Raises:
            PermanentError: there is no model in it.
        """
        if not (folder / "config.json").is_file():
            raise PermanentError("no model in this folder", where=str(folder), fix="Fetch one with: stillhouse models fetch")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=ATTENTION, local_files_only=True, use_safetensors=True
        )
        dtype = torch.bfloat16 if takes_bfloat16(precision, torch.cpu.get_capabilities()) else torch.float32
        return cls(model, dtype)

    @torch.inference_mode()
    def forward(self, adapters: Sequence[str], ids: Sequence[int], lanes: Lanes, layout: Layout, wanted: Sequence[int]) -> torch.Tensor:
        """Run one step.

        Args:
            adapters: whose each of the T rows is; empty for the base model.
            ids: the T token ids of the step.
            lanes: keys and values; the step's are added.
            layout: where the tokens belong.
            wanted: rows to give logits of.

        Returns:
            (len(wanted), vocabulary) logits.
        """
        self.weights.use(adapters)
        hidden = self._model.model(
            input_ids=torch.tensor(ids)[:, None], position_ids=layout.position[:, None], use_cache=False, lanes=lanes, layout=layout
        ).last_hidden_state
        self.weights.use([adapters[i] for i in wanted])
        return self._model.lm_head(hidden[torch.tensor(wanted, dtype=torch.long), 0])  # type: ignore[no-any-return]
