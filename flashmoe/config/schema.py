"""The configuration: one YAML file that the user writes and the program only reads.

Every field has a docstring, which is its documentation everywhere (``config --defaults``, ``config --schema``). A
wrong field keeps its default and becomes a `Problem` with file, line and a suggestion; nothing here ever raises on
what a user wrote. ``FLASHMOE_<SECTION>__<FIELD>`` in the environment wins over the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta, Struct, field

from flashmoe import paths

Auto = Literal["auto"]
Count = Annotated[int, Meta(ge=0)] | Auto

T = TypeVar("T", int, float)


class BackendConfig(Struct, kw_only=True, frozen=True):
    """How models are loaded, where neither a flag nor the app's load dialog says otherwise."""

    backend: str = "auto"
    """auto, mmap (the kernel pages the file in), stream (experts are read on demand), remote, or an installed one."""
    ram: Annotated[float, Meta(gt=0, le=65536)] | Auto = "auto"
    """The most memory that routed experts may hold, in GiB. Dense weights, context and buffers come on top."""
    gpu_layers: Annotated[int, Meta(ge=0, le=10000)] | Auto = "auto"
    """Layers whose attention and dense weights go to the GPU. 0 uses no GPU."""
    vram_experts: Annotated[float, Meta(ge=0, le=65536)] | Auto = 0.0
    """The most GiB of experts that go to the GPU, whole layers of them; auto takes as many as fit there."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | Auto = "auto"
    """Compute threads; auto is one per physical core that this process may use."""
    ctx: Annotated[int, Meta(ge=64, le=1 << 24)] | Auto = "auto"
    """Context in tokens; auto is what the model was trained for, or less where memory is short."""
    warm: bool = True
    """Remember how much each expert was used, and read the most used ones after a load, while idle."""
    kv_type: Literal["f16", "q8_0"] = "f16"
    """How the context's keys and values are kept: q8_0 takes about half of the memory, and answers differ a little."""
    repack: Literal["auto", "on", "off"] = "auto"
    """Weights in the order that this processor computes fastest with: on repacks what stays in memory (experts as well
    where all of them fit there), auto does what was measured to pay here."""
    ubatch: Annotated[int, Meta(ge=1, le=65536)] | Auto = "auto"
    """Prompt tokens computed in one pass, which reads all experts that aren't in memory once; auto makes reading and
    computing take equally long, where memory allows."""
    max_stall: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    """The most seconds that an answer waits for another one's prompt: passes are shortened for that; 0 is no limit."""


class UiConfig(Struct, kw_only=True, frozen=True):
    """How the app looks and behaves."""

    theme: str = "auto"
    """A theme's name (from themes/*.yaml of yours or of the program); auto picks one that fits the terminal."""
    calm: Literal["auto", "on", "off"] = "auto"
    """No animation and at most 4 repaints a second besides typing and streaming; auto turns it on over SSH."""
    characters: Literal["auto", "unicode", "ascii"] = "auto"
    """What lines, bars and curves are drawn with; auto takes ascii on terminals that are known to have nothing else."""
    monitor: Literal["shown", "hidden"] = "shown"
    """The monitor at start: beside the chat where the terminal is wide enough, else as a strip; or hidden."""
    markdown: bool = True
    """Render answers as Markdown; false shows them as plain text."""
    keys: dict[str, str] = field(default_factory=dict)
    """Keys by the id that F1 shows, as in "chat.new: ctrl+x n" (several with commas); "set: classic" uses that set."""


class ModelsConfig(Struct, kw_only=True, frozen=True):
    """Where models are."""

    folder: str = ""
    """Where downloads go and the library looks first; empty is the models folder that flashmoe-tui paths shows."""
    extra_folders: tuple[str, ...] = ()
    """More folders with GGUF files for the library; nothing is ever written or deleted there."""


class DownloadsConfig(Struct, kw_only=True, frozen=True):
    """How models are downloaded."""

    parallel: Annotated[int, Meta(ge=1, le=16)] = 3
    """Connections that download one model in parallel, spread over its files."""
    limit: Annotated[float, Meta(ge=0, le=1 << 20)] = 0.0
    """The most bandwidth for all downloads together, in MiB/s; 0 is no limit."""


class ChatConfig(Struct, kw_only=True, frozen=True):
    """What a new chat starts with."""

    preset: str = "auto"
    """A preset of flashmoe-tui config --presets; auto takes what the model's card recommends, where known."""
    system_prompt: str = ""
    """The system prompt of new chats; empty is none."""
    thinking: Literal["auto", "on", "off", "low", "medium", "high"] = "auto"
    """Thinking, or how much of it, where the model's template has a switch; auto leaves the template's default."""


class HistoryConfig(Struct, kw_only=True, frozen=True):
    """What is kept of chats."""

    keep_days: Annotated[int, Meta(ge=0, le=36500)] = 0
    """Chats unused for this many days are deleted at start, except pinned ones; 0 keeps all."""
    trash_days: Annotated[int, Meta(ge=0, le=36500)] = 30
    """Days for which a deleted chat can be restored."""


class KvCacheConfig(Struct, kw_only=True, frozen=True):
    """What was read of prompts, on disk, for the app and `serve` together: coming back to a long chat, or to an agent's
    instructions, then costs a read instead of minutes."""

    max_gib: Annotated[float, Meta(ge=0, le=65536)] = 16.0
    """The most disk space for it, in GiB, and never more than a tenth of what is free; the oldest go first. 0 turns it
    off."""
    min_tokens: Annotated[int, Meta(ge=1, le=1 << 24)] = 256
    """Prompts shorter than this are not kept on disk: computing them again is as fast."""


class Config(Struct, kw_only=True, frozen=True):
    """Everything that can be configured, by section."""

    backend: BackendConfig = BackendConfig()
    ui: UiConfig = UiConfig()
    models: ModelsConfig = ModelsConfig()
    downloads: DownloadsConfig = DownloadsConfig()
    chat: ChatConfig = ChatConfig()
    history: HistoryConfig = HistoryConfig()
    kv_cache: KvCacheConfig = KvCacheConfig()

    def models_folder(self) -> Path:
        """The folder for downloads, as the configuration or the environment has it."""
        if os.environ.get("FLASHMOE_MODELS") or not self.models.folder:
            return paths.models_dir()
        return Path(self.models.folder).expanduser().absolute()

    def library_folders(self) -> list[Path]:
        """Every folder that the library looks in, the one for downloads first, none twice."""
        folders = [self.models_folder(), *(Path(f).expanduser().absolute() for f in self.models.extra_folders)]
        return list(dict.fromkeys(folders))


class Problem(Struct, frozen=True):
    """Something wrong in the configuration. `where` is "FILE:LINE" or an environment variable."""

    where: str
    field: str
    """The dotted name, e.g. "backend.ram"; empty where the file as a whole is wrong."""
    message: str

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        name = f"{self.field} " if self.field else ""
        return f"{self.where}: {name}{self.message}"


class LoadedConfig(Struct, frozen=True):
    """A configuration, where it came from and what was wrong with it."""

    config: Config
    path: Path
    exists: bool
    problems: tuple[Problem, ...] = ()
    lines: dict[str, int] = field(default_factory=dict)
    """The file's line of each field that it sets, by dotted name: for problems that only the app can see (keys)."""

    def place(self, name: str) -> str:
        """ "FILE:LINE" of a field, for a message."""
        line = self.lines.get(name)
        return f"{paths.display(self.path)}:{line}" if line else paths.display(self.path)


def auto_to_none(value: T | Auto) -> T | None:
    """``auto`` as None, which is how requests say it."""
    return None if isinstance(value, str) else value
