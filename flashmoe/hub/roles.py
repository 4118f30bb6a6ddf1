"""What a GGUF file is: a model that writes text, or something that belongs to one (a projector, a drafter, …).

Its name says it before anything is fetched; the start of its header says it for certain. A name only counts where it
leaves no doubt: “MTP” in the middle of a name is a model with prediction layers, in front or at the end a drafter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from backends.gguf.names import quant_label
from backends.gguf.types import ARCHITECTURES, NOT_CHAT_MODELS

Role = Literal["model", "projector", "imatrix", "drafter", "adapter", "vocabulary", "voice", "other"]

ROLE_WORDS: dict[str, str] = {
    "projector": "a projector for images or sound",
    "imatrix": "an importance matrix",
    "drafter": "a drafter for speculative decoding",
    "adapter": "an adapter (LoRA)",
    "vocabulary": "a vocabulary without weights",
    "voice": "a part of a speech model",
    "other": "a model that doesn't generate text",
}

_DRAFT_FOLDERS = frozenset(
    "mtp draft drafts drafter drafters eagle eagle3 dflash dspark medusa speculator speculators assistant".split()  # noqa: SIM905
)
_DRAFT_START = re.compile(r"^(mtp|draft|drafter|eagle-?3|dflash|dspark|medusa|speculator|nextn)[-_.]", re.IGNORECASE)
_DRAFT_WORDS = frozenset({"speculator", "speculators", "eagle3", "dflash", "dspark", "draft", "drafter", "medusa"})
_ADAPTER_FOLDERS = frozenset({"lora", "loras", "adapter", "adapters"})
_VOICE_WORDS = frozenset({"vocoder", "tokenizer", "detokenizer", "audiodetokenizer", "wavtokenizer", "codec"})
_WORD = re.compile(r"[-_. ]+")

_DRAFT_ARCHITECTURES = frozenset({"eagle3", "dflash", "gemma4-assistant"})
_VOICE_ARCHITECTURES = frozenset({"wavtokenizer-dec", "qwen3tts", "pockettts"})


def role_of_name(path: str) -> Role:
    """What the file at `path` in its repository (or folder) is, as far as its name tells."""
    pure = PurePosixPath(path.lower())
    stem = pure.name.removesuffix(".gguf")
    words = [word for word in _WORD.split(stem) if word]
    folders = set(pure.parent.parts)
    if any(word.startswith("mmproj") for word in (*words, *folders)):
        return "projector"
    if "imatrix" in words or "imatrix" in folders:
        return "imatrix"
    if folders & _DRAFT_FOLDERS or _DRAFT_START.match(stem) or _DRAFT_WORDS & set(words):
        return "drafter"
    if "mtp" in words and ((words[-1] == "mtp" and quant_label(stem)) or "assistant" in words):
        return "drafter"  # …-Q8_0-MTP, …-assistant-MTP-Q8_0; but Model-MTP-Q4_K_M is a model with its own drafter
    if folders & _ADAPTER_FOLDERS or ({"lora", "adapter", "cvector"} & set(words) and "merged" not in words):
        return "adapter"
    if "control" in words and "vector" in words:
        return "adapter"
    if "vocab" in words:
        return "vocabulary"
    if _VOICE_WORDS & set(words):
        return "voice"
    return "model"


def is_chat_model(path: str) -> bool:
    """Whether a name is that of a model (or of a part of one), full precision included."""
    return path.lower().endswith(".gguf") and role_of_name(path) == "model"


def role_of_header(kv: Mapping[str, object], n_tensors: int | None, first_layer: bool | None = None) -> Role:
    """What the header says: its type, its architecture, whether there are weights at all.

    `n_tensors` is None for one part of a set (the weights may be in the others); `first_layer` tells whether the first
    layer is there, None where that isn't known.
    """
    kind = kv.get("general.type")
    if kind in ("adapter", "imatrix"):
        return "adapter" if kind == "adapter" else "imatrix"
    architecture = kv.get("general.architecture")
    if kind == "mmproj" or architecture == "clip":
        return "projector"
    if "adapter.type" in kv or architecture == "controlvector":
        return "adapter"
    if architecture in _DRAFT_ARCHITECTURES:
        return "drafter"
    if architecture in _VOICE_ARCHITECTURES:
        return "voice"
    if architecture == "imatrix":
        return "imatrix"
    if architecture in NOT_CHAT_MODELS:
        return "other"
    if n_tensors == 0 or kind == "vocab":
        return "vocabulary"
    # A drafter that was cut out of its model has the model's architecture and only its last layers.
    if architecture in ARCHITECTURES and first_layer is False and kv.get(f"{architecture}.block_count"):
        return "drafter"
    return "model"
