"""A tiny random model and what the student server's tests share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 120


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def random_llama(seed: int = 0) -> Any:
    """A Llama with grouped heads, small enough for milliseconds, random enough to have no ties."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, intermediate_size=64, vocab_size=VOCABULARY,
        tie_word_embeddings=True, max_position_embeddings=512, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def random_adapter(folder: Path, seed: int, scale: float = 0.3) -> Path:
    """A LoRA folder for `random_llama`, its B not zero."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(random_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=scale)
    model.save_pretrained(folder)
    return folder
