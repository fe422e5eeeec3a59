"""Tokenizers of base models: a byte-level BPE with the chat template's special tokens, written as transformers reads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.schemas.render_template import END_OF_TURN, PAD, SPECIAL_TOKENS, TEMPLATE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Enough JSON and plain English for the tiny model's merges; what it says does not matter.
_TINY_TEXT = (
    '{"name": "cancel", "arguments": {"id": "1234"}} {"ok": true} {"error": "no such order"} {"orders": ["blue lamp: shipped"]}',
    "system user assistant tool Order desk agent. Please cancel my order, send it to the new address and refund me.",
    "The order is cancelled. The customer has a new item on its way. Hi, my email is ana.ruiz@mail.com here.",
)


def byte_level(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str]) -> "Tokenizer":
    """A byte-level BPE that keeps digits apart, as SmolLM2's own does (its vocabulary has no token with two)."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(merges)))
    _dress(tokenizer, special)
    return tokenizer


def tiny_tokenizer() -> "Tokenizer":
    """A small byte-level BPE (512 tokens), trained on a fixed text: the same on every machine."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    _dress(tokenizer, ())
    trainer = BpeTrainer(
        vocab_size=512, show_progress=False, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=sorted(ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(_TINY_TEXT, trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: Path) -> None:
    """Write `tokenizer.json`, its configuration for transformers and vLLM, and the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _dress(tokenizer: "Tokenizer", special: Sequence[str]) -> None:
    from tokenizers import AddedToken, decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
