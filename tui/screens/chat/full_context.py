"""The question what goes when a prompt doesn't fit into the context."""

from __future__ import annotations

from flashmoe import figures
from tui.chat.view import ContextChoice, FullContext
from tui.host import Host


async def ask_about_context(host: Host, full: FullContext) -> ContextChoice:
    """Lets the user choose; ``cancel`` on Esc."""
    from tui.screens.dialogs import Choice, ChoiceDialog

    choices: list[Choice] = []
    if full.oldest:
        which = f"the oldest {full.oldest} of {full.shown} messages" if full.oldest > 1 else "the oldest message"
        undo_key = host.keymap.display("chat.show_all")
        undo = f"; {undo_key} undoes it" if undo_key else ""
        choices += [
            Choice("drop", f"Leave out {which}", f"Kept in the chat, hidden from the model{undo}"),
            Choice("summarise", f"Summarise {which}", f"Replaced by the model's summary{undo}"),
        ]
    if full.grow:
        memory = f", with {figures.size(full.grow_bytes)} more memory" if full.grow_bytes else ""
        detail = f"Reloads the model{memory}; kept for this chat"
        choices.append(Choice("grow", f"A context of {full.grow:,} tokens", detail))
    choices.append(Choice("cancel", "Cancel: don't send the question", "Back to the chat; the question is kept"))
    said = f"The prompt has {full.tokens:,} tokens; the context holds {full.n_ctx:,}.\n"
    said += f"The question alone has about {full.alone:,}." if full.alone else "What should be left out?"
    answer = await host.ask_screen(ChoiceDialog("The context is full", said, choices))
    return answer if answer in ("drop", "summarise", "grow") else "cancel"  # type: ignore[return-value]
