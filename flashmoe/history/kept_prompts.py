"""What the engine keeps of chats goes with them."""

from __future__ import annotations

from pathlib import Path

from flashmoe import paths


def forget_prompts(uids: list[str], folder: Path | None = None) -> None:
    """Removes from the folder of kept prompts what only these chats have there."""
    if uids:
        from backends.llamacpp.prompt_files import forget_chats

        forget_chats(folder or paths.prompts_dir(), uids)
