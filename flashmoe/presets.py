"""Named sampler presets: built in, recommended by models' cards, and the user's own in ``presets.yaml``.

The user's file has one mapping a preset, and may change a built-in one by its name. The program only reads it::

    my-stories:
      description: long, colourful answers
      temperature: 1.1
      min_p: 0.02
      models: "qwen3.*instruct"     # optional: what `auto` takes for models whose name matches
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from backends.interface import Sampling
from flashmoe import paths
from flashmoe.config.schema import Problem

AUTO = "auto"
DEFAULT = "default"


class PresetFields(Struct, kw_only=True, frozen=True):
    """What a preset in the user's file may say; what it doesn't say is taken from `Sampling`'s defaults."""

    description: str = ""
    """A few words for the list."""
    models: str = ""
    """A regular expression: `auto` takes this preset for models whose name matches (case is ignored)."""
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.7
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.95
    """The likeliest tokens that together reach this probability; 1 is all."""
    top_k: Annotated[int, Meta(ge=0, le=1000000)] = 40
    """The k likeliest tokens; 0 is all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Tokens at least this likely relative to the likeliest; 0 is all."""
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """Above 1 makes tokens of the recent text less likely."""
    presence_penalty: Annotated[float, Meta(ge=-10, le=10)] = 0.0
    """Taken off tokens that appeared at all."""
    frequency_penalty: Annotated[float, Meta(ge=-10, le=10)] = 0.0
    """Taken off tokens for each time they appeared."""


class Preset(Struct, frozen=True, kw_only=True):
    """A named set of sampler settings. `source` is "built in", "model card" or the user's file."""

    name: str
    sampling: Sampling
    description: str = ""
    models: str = ""
    source: str = "built in"


def _p(name: str, description: str, models: str = "", **settings: Any) -> Preset:
    source = "built in" if name in (DEFAULT, "precise", "creative") else "model card"
    return Preset(name=name, sampling=Sampling(**settings), description=description, models=models, source=source)


_CARD: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "top_p": 1.0}
"""Cards name what they change from plain sampling, not from llama.cpp's defaults."""

BUILT_IN: tuple[Preset, ...] = (
    _p(DEFAULT, "balanced, for most questions"),
    _p("precise", "facts and code: close to the most likely answer", temperature=0.2, top_p=0.9, top_k=20, min_p=0.1),
    _p("creative", "stories and ideas: more variety", temperature=1.1, top_p=0.98, top_k=100, min_p=0.03),
    # Small enough that a bold sample leads it astray; above 0, so that regenerating says it in other words.
    _p("guide", "the demo model", r"^flashmoe[ -]guide", temperature=0.3, top_p=0.9, top_k=20, min_p=0.1),
    # From the models' cards. The first whose pattern matches counts, so special variants come before their family.
    # Families whose card names no sampler settings are not here and get the default.
    _p(
        "qwen3.5-instruct", "Qwen3.5 and 3.6 with thinking off",
        temperature=0.7, top_p=0.8, top_k=20, min_p=0.0, presence_penalty=1.5,
    ),
    _p(
        "qwen3.5", "Qwen3.5 and 3.6, thinking", r"qwen-?3[._-][56]",
        temperature=1.0, top_p=0.95, top_k=20, min_p=0.0, presence_penalty=1.5,
    ),
    _p(
        "qwen3-coder", "Qwen3-Coder", r"qwen3-coder",
        temperature=0.7, top_p=0.8, top_k=20, min_p=0.0, repeat_penalty=1.05,
    ),
    _p("qwen3-instruct", "Qwen3 instruct, or with thinking off", r"qwen3.*instruct",
       temperature=0.7, top_p=0.8, top_k=20, min_p=0.0),
    _p("qwen3", "Qwen3, thinking", r"qwen3", temperature=0.6, top_p=0.95, top_k=20, min_p=0.0),
    _p("gpt-oss", "gpt-oss", r"gpt-oss", **{**_CARD, "temperature": 1.0}),
    _p("glm-4.7", "GLM-4.7", r"glm-?4[._-]7", **{**_CARD, "temperature": 1.0, "top_p": 0.95}),
    _p("glm-4.6", "GLM-4.6", r"glm-?4[._-]6", **{**_CARD, "temperature": 1.0, "top_p": 0.95, "top_k": 40}),
    _p("deepseek-r1", "DeepSeek-R1", r"deepseek-r1", **{**_CARD, "temperature": 0.6, "top_p": 0.95}),
    _p("kimi-k2-instruct", "Kimi-K2 instruct", r"kimi-k2-instruct", **{**_CARD, "temperature": 0.6}),
    _p("minimax-m2", "MiniMax-M2", r"minimax-m2", **{**_CARD, "temperature": 1.0, "top_p": 0.95, "top_k": 40}),
    _p("gemma", "Gemma 3 and 4", r"gemma-?[34]", **{**_CARD, "temperature": 1.0, "top_p": 0.95, "top_k": 64}),
    _p("lfm2", "LFM2", r"lfm2", **{**_CARD, "temperature": 0.3, "min_p": 0.15, "repeat_penalty": 1.05}),
)  # fmt: skip


class Presets(Struct, frozen=True):
    """The presets in force by name, and what was wrong in the user's file."""

    presets: dict[str, Preset]
    problems: tuple[Problem, ...] = ()

    def recommended(self, model: str) -> Preset:
        """What `auto` means for a model of this name: the user's match, its card's, else the default."""
        own = {preset.name for preset in BUILT_IN}
        for preset in sorted(self.presets.values(), key=lambda p: p.name in own):
            if preset.models and re.search(preset.models, model.replace(" ", "-"), re.IGNORECASE):
                return preset
        return self.presets[DEFAULT]

    def pick(self, name: str, model: str = "") -> Preset:
        """The preset of this name, or for ``auto`` what suits the model. Raises KeyError for other names."""
        return self.recommended(model) if name == AUTO else self.presets[name]

    def unknown(self, name: str, where: str, field: str = "") -> Problem:
        """The problem to report for a name that is no preset."""
        close = difflib.get_close_matches(name, list(self.presets), n=1)
        hint = f"did you mean {close[0]}" if close else "there are " + ", ".join(self.presets)
        return Problem(where, field, f"names the preset {name!r}, which does not exist; {hint}.")

    def as_yaml(self) -> str:
        """Every preset, as the user's file would hold it."""
        import yaml

        lines = ["# Sampler presets in force. Your own go into presets.yaml (flashmoe-tui paths presets)."]
        for preset in self.presets.values():
            shown = {key: getattr(preset.sampling, key) for key in _SAMPLER_FIELDS}
            entry = {"description": preset.description, **({"models": preset.models} if preset.models else {}), **shown}
            dumped = yaml.safe_dump({preset.name: entry}, sort_keys=False, allow_unicode=True)
            lines += ["", f"# {preset.source}", dumped.rstrip()]
        return "\n".join(lines) + "\n"


_SAMPLER_FIELDS = [name for name in PresetFields.__struct_fields__ if name not in ("description", "models")]


def load_presets(path: Path | None = None) -> Presets:
    """The built-in presets with the user's file over them. Never raises on what the file holds."""
    path = path or paths.presets_file()
    presets = {preset.name: preset for preset in BUILT_IN}
    if not path.exists():
        return Presets(presets)
    from flashmoe.config.reader import Reader

    reader = Reader(path)
    _, root = reader.root()
    for key_node, value in root.value if root is not None else ():
        name = str(key_node.value)
        if not re.fullmatch(r"[\w][\w .+-]{0,39}", name) or name == AUTO:
            reader.problem(reader.at(key_node), "", f"{name[:40]!r} can't be a preset's name.")
            continue
        before = presets.get(name)
        reader.section(name, value, PresetFields)
        values = dict(reader.values.get(name, {}))
        pattern = values.get("models", before.models if before else "")
        try:
            re.compile(pattern)
        except (re.error, OverflowError) as error:
            reader.problem(reader.at(value), f"{name}.models", f"is not a regular expression ({error}).")
            pattern = ""
        settings = {key: values[key] for key in _SAMPLER_FIELDS if key in values}
        presets[name] = Preset(
            name=name,
            sampling=msgspec.structs.replace(before.sampling if before else Sampling(), **settings),
            description=values.get("description", before.description if before else ""),
            models=pattern,
            source=paths.display(path),
        )
    return Presets(presets, tuple(reader.problems))
