"""The / commands: typed in the composer, completed as they are typed. Each does what a key does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from flashmoe import paths
from flashmoe.text_safety import visible_line
from tui.chat.prompts import INPUT, OwnPrompt, read_prompts
from tui.key_table import SETS
from tui.screens.chat.drafting import Drafting
from tui.screens.chat.parts import ChatParts
from tui.texts import path_in, server_in, typed_path, write_new
from tui.widgets.offers import Offer


class Command(NamedTuple):
    """One command. `action` is the screen's or app's action that it runs where nothing is typed behind it."""

    name: str
    description: str
    action: str = ""
    argument: str = ""
    """What may follow, in capitals; empty: nothing."""


COMMANDS: tuple[Command, ...] = (
    Command("new", "A new chat", "new_chat"),
    Command("model", "Load a model; without a name, list the models", "models", "NAME"),
    Command("retry", "Regenerate the answer; the old one stays as a branch", "regenerate"),
    Command("continue", "Continue an answer that was cut short", "continue_answer"),
    Command("edit", "Edit the last question: a new branch", "edit_question"),
    Command("system", "Set this chat's system prompt; without a text, open the settings", "settings", "TEXT"),
    Command("settings", "System prompt and sampling of this chat", "settings"),
    Command("chats", "The list of chats", "chats"),
    Command("search", "Search in all chats", "search_chats"),
    Command("export", "Export this chat to a file: .md or .json", "", "FILE"),
    Command("save", "Save the last answer to a file", "save_answer"),
    Command("copy", "Copy the last answer", "copy_answer"),
    Command("code", "Copy the last code block", "copy_code"),
    Command("attach", "Attach a text file", "attach", "FILE"),
    Command("theme", "Choose the colours", "app.themes", "NAME"),
    Command("keys", "Choose a set of keys: standard or classic", "app.help", "SET"),
    Command("experts", "The full-screen expert map", "experts"),
    Command("monitor", "Fold or open the monitor", "monitor"),
    Command("downloads", "The downloads", "downloads"),
    Command("thinking", "Show or fold the model's thinking", "thinking"),
    Command("help", "Keys, panes, what to do when it is slow", "app.help"),
    Command("quit", "Quit; chats are saved", "app.quit"),
)


class SlashCommands:
    """Runs them, and says what could complete one."""

    def __init__(self, parts: ChatParts, drafting: Drafting, act: Callable[[str], Awaitable[object]]) -> None:
        """`act` runs an action of the screen by its name."""
        self._parts = parts
        self._drafting = drafting
        self._act = act
        self._known = {command.name: command for command in COMMANDS}
        self._prompts: dict[str, OwnPrompt] = {}
        self._models: list[str] | None = None
        self._looking = False

    # ---- completing ------------------------------------------------------------------------------------------------

    def offers(self, text: str) -> list[Offer]:
        """What could complete `text`, which begins with a slash."""
        name, blank, rest = text[1:].partition(" ")
        if not blank:
            if not name:
                self._look_at_prompts()
            own = [Offer(f"/{p.name} ", f"/{p.name}", p.first_line, False) for p in self._prompts.values()]
            ours = [_offer(command) for command in COMMANDS]
            return [offer for offer in [*ours, *own] if offer.text[1:].startswith(name.lower())]
        values = self._values(name)
        return [
            Offer(f"/{name} {value}", value, "")
            for value in values
            if rest.strip().lower() in value.lower() and value != rest.strip()
        ]

    def _values(self, name: str) -> list[str]:
        if name == "theme":
            return sorted(self._parts.host.theme_names)
        if name == "keys":
            return list(SETS)
        if name == "model":
            if self._models is None and not self._looking:
                self._looking = True
                self._parts.start(self._look_at_models())
            return self._models or []
        return []

    async def _look_at_models(self) -> None:
        from flashmoe.hub.library import Library

        entries = await asyncio.to_thread(lambda: Library().scan(facts=False))
        self._models = [visible_line(entry.name, 120) for entry in entries] + ["demo"]
        self._looking = False
        self._parts.composer.show_offers()

    def _look_at_prompts(self) -> None:
        self._prompts = {prompt.name: prompt for prompt in read_prompts(frozenset(self._known))}
        self._models = None

    # ---- running ---------------------------------------------------------------------------------------------------

    def run(self, text: str) -> bool:
        """Runs `text` where it is a command; False where it is a question, as a path or a slash behind a blank is."""
        name, _, rest = text.strip().partition(" ") if "\n" not in text.strip() else ("", "", "")
        if not text.startswith("/") or not name[1:].replace("-", "").replace("_", "").isalnum():
            return False
        word, rest = name[1:].lower(), rest.strip()
        if word not in self._known and word not in self._prompts:
            self._look_at_prompts()
        parts = self._parts
        if word in self._prompts:
            parts.composer.accepted(text)
            parts.start(self._fill(self._prompts[word], rest), opens=True)
        elif word in self._known:
            command = self._known[word]
            if rest and not command.argument:
                parts.say(f"/{word} takes no argument.", "warning")
                return True
            parts.composer.accepted(text)
            parts.start(self._run(command, rest), opens=True)
        else:
            parts.say(f"/{word} is not a command. To send it as text, put a space before it.", "warning")
        return True

    async def _run(self, command: Command, rest: str) -> None:
        if command.name == "export":
            await self._export(rest)
        elif not rest:
            await self._act(command.action)
        elif command.name == "model":
            await self._load(rest)
        elif command.name == "theme":
            if not self._parts.host.choose_theme(rest):
                self._parts.say(
                    f"{visible_line(rest, 40)} is not a theme; choose one of "
                    f"{', '.join(sorted(self._parts.host.theme_names))}.",
                    "warning",
                )
        elif command.name == "keys":
            if rest not in SETS:
                self._parts.say(
                    f"{visible_line(rest, 40)} is not a set of keys; choose {' or '.join(SETS)}.", "warning"
                )
                return
            self._parts.host.choose_key_set(rest)
            self._parts.say(f"Now using the {rest} keys; {self._parts.key('app.help')} shows them.")
        elif command.name == "system":
            conversation = self._parts.flow.conversation
            conversation.settings = msgspec.structs.replace(conversation.settings, system_prompt=rest)
            await self._parts.flow.given.settings_changed()
            self._parts.say("The next answer uses this system prompt.")
        elif command.name == "attach":
            await self._drafting.attach_path(typed_path(rest))

    async def _load(self, name: str) -> None:
        from flashmoe.hub.errors import HubError
        from flashmoe.hub.library import resolve_model

        server = server_in(name)
        if server is not None:
            await self._parts.host.load_model(server)
            return
        try:
            path = await asyncio.to_thread(resolve_model, str(path_in(name) or name))
        except HubError as error:
            self._parts.say(error.message, "error")
            return
        await self._parts.host.load_model(str(path))

    async def _export(self, rest: str) -> None:
        from flashmoe.history.exchange import to_json_text, to_markdown

        chat = self._parts.flow.conversation
        if chat.id is None:
            self._parts.say("There is nothing to export yet.", "warning")
            return
        words = "-".join("".join(c if c.isalnum() else " " for c in chat.title.lower()).split()[:6])
        path = typed_path(rest) if rest else Path(f"{words or 'chat'}.md")
        history = await self._parts.archive.history()
        if path.suffix.lower() == ".json":
            text = await history.in_thread(to_json_text, history, [chat.id])
        else:
            text = await history.in_thread(to_markdown, history, chat.id)
        try:
            await asyncio.to_thread(write_new, path, text)
        except OSError as error:
            self._parts.say(f"{paths.display(path)} was not written: {error.strerror or error}.", "error")
            return
        self._parts.say(f"Exported to {paths.display(path.absolute())}.")

    async def _fill(self, prompt: OwnPrompt, rest: str) -> None:
        from tui.screens.dialogs import TextDialog

        first = INPUT if INPUT in prompt.places or not prompt.places else prompt.places[0]
        values = {first: rest} if rest else {}
        for place in prompt.places:
            if place in values:
                continue
            title = f"/{prompt.name}"
            answer = await self._parts.host.ask_screen(TextDialog(title, f"{visible_line(place, 60)}:"))
            if answer is None:
                return
            values[place] = answer
        self._parts.composer.set_text(prompt.filled(values))
        self._parts.composer.focus()


def _offer(command: Command) -> Offer:
    needs = bool(command.argument) and not command.action
    text = f"/{command.name} " if command.argument else f"/{command.name}"
    return Offer(text, f"/{command.name} {command.argument}".rstrip(), command.description, not needs)
