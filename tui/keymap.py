"""Every key of the app: stable ids, defaults, the user's remapping and its conflicts.

One table serves the bindings of all screens, the key bar, F1 and the documentation, so that they can't disagree. Keys
are remapped in the config by id (``keys: {chat.stop: ctrl+c}``); a remapping that collides with another key of the same
screen, or that names an unknown id, is reported in one sentence and left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from textual.binding import Binding, BindingType


class KeySpec(NamedTuple):
    """One action with its keys. `keys` is comma-separated in Textual's names (``ctrl+j``, ``f1``)."""

    id: str
    keys: str
    action: str
    description: str
    label: str = ""
    """Short form in the key bar; empty: not shown there."""
    priority: bool = False
    """Wins over the focused widget: needed while the composer has the focus."""

    @property
    def scope(self) -> str:
        """The screen or widget that the key belongs to: the part of the id before the dot."""
        return self.id.partition(".")[0]


KEYS: tuple[KeySpec, ...] = (
    KeySpec("app.help", "f1", "app.help", "Help: keys, panes, what to do when it is slow", "help", True),
    KeySpec("app.palette", "ctrl+p", "app.command_palette", "Commands: everything the app can do", "commands", True),
    KeySpec("app.quit", "ctrl+q", "app.quit", "Quit; chats are saved, the engine stops", "", True),
    KeySpec(
        "app.suspend", "ctrl+z", "app.suspend_process", "Put the app in the background; fg brings it back", "", True
    ),
    KeySpec("chat.models", "ctrl+o", "models", "Models: choose, download, plan", "models", True),
    KeySpec("chat.new", "ctrl+n", "new_chat", "New chat", "new", True),
    KeySpec("chat.chats", "ctrl+t", "chats", "Chats: list, search, rename, pin, delete, export", "chats", True),
    KeySpec("chat.search", "ctrl+f", "search_chats", "Search in all chats", "", True),
    KeySpec("chat.experts", "ctrl+e", "experts", "Experts: the full-screen map", "experts", True),
    KeySpec("chat.monitor", "f2", "monitor", "Fold or open the monitor", "", True),
    KeySpec(
        "chat.span", "ctrl+l", "monitor_span", "Monitor: curves over 30 s, 2 min, 10 min, 1 h, the session", "", True
    ),
    KeySpec("chat.settings", "f3", "settings", "Settings of this chat: system prompt, sampling, preset", "", True),
    KeySpec("chat.downloads", "f5", "downloads", "Downloads", "", True),
    KeySpec("chat.stop", "escape", "stop", "Stop the answer and keep what is there; cancel a load", "stop", True),
    KeySpec("chat.continue", "ctrl+g", "continue_answer", "Go on with an answer that was cut short", "", True),
    KeySpec("chat.regenerate", "ctrl+r", "regenerate", "Answer again; the old answer stays as a branch", "", True),
    KeySpec("chat.edit", "f4", "edit_question", "Edit the last question (or the marked one): a new branch", "", True),
    KeySpec("chat.branch_left", "alt+left", "branch(-1)", "The branch before", "", True),
    KeySpec("chat.branch_right", "alt+right", "branch(1)", "The branch after", "", True),
    KeySpec("chat.show_all", "f10", "show_all", "Show the model again what was left out of the context", "", True),
    KeySpec("chat.copy", "ctrl+y", "copy_answer", "Copy the last answer (or the marked message)", "", True),
    KeySpec("chat.copy_code", "f7", "copy_code", "Copy the last code block; again: the one before", "", True),
    KeySpec("chat.save", "ctrl+s", "save_answer", "Save the last answer to a file", "", True),
    KeySpec("chat.thinking", "f9", "thinking", "Show or fold what the model thought", "", True),
    KeySpec("chat.attach", "f8", "attach", "Attach a text file", "", True),
    KeySpec("chat.page_up", "pageup", "scroll_page(-1)", "Scroll the chat up", "", True),
    KeySpec("chat.page_down", "pagedown", "scroll_page(1)", "Scroll the chat down", "", True),
    KeySpec("chat.top", "ctrl+home", "scroll_edge(-1)", "Start of the chat", "", True),
    KeySpec("chat.end", "ctrl+end", "scroll_edge(1)", "End of the chat; follow the answer again", "", True),
    KeySpec("composer.send", "enter", "send", "Send", "", True),
    KeySpec("composer.newline", "shift+enter,ctrl+j", "newline", "Break the line", "", True),
    KeySpec("composer.history_prev", "up", "history(-1)", "On the first line: the prompt before"),
    KeySpec("composer.history_next", "down", "history(1)", "On the last line: the prompt after"),
    KeySpec("composer.editor", "f6", "editor", "Write in $VISUAL or $EDITOR", "", True),
    KeySpec("field.start", "ctrl+a", "line_start", "Start of the line"),
    KeySpec("field.kill_end", "ctrl+k", "kill_to_end", "Cut the rest of the line"),
    KeySpec("field.kill_start", "ctrl+u", "kill_to_start", "Cut the line up to the cursor"),
    KeySpec("field.kill_word", "ctrl+w", "kill_word", "Cut the word before the cursor"),
    KeySpec("field.kill_letters", "alt+backspace", "kill_letters", "Cut the word before, up to punctuation"),
    KeySpec("field.kill_ahead", "alt+d", "kill_word_ahead", "Cut the word after the cursor"),
    KeySpec("field.word_left", "alt+b,ctrl+left", "cursor_word_left", "A word left"),
    KeySpec("field.word_right", "alt+f,ctrl+right", "cursor_word_right", "A word right"),
    KeySpec("transcript.up", "k,up", "mark(-1)", "Mark the message before (Tab moves here from the composer)"),
    KeySpec("transcript.down", "j,down", "mark(1)", "Mark the message after"),
    KeySpec("transcript.first", "g,home", "mark_edge(-1)", "Mark the first message"),
    KeySpec("transcript.last", "G,end", "mark_edge(1)", "Mark the last message"),
    KeySpec("transcript.edit", "e", "screen.edit_question", "Edit the marked question"),
    KeySpec("transcript.copy", "y,c", "screen.copy_answer", "Copy the marked message"),
    KeySpec("transcript.fold", "enter,space", "toggle_thinking", "Show or fold what the model thought there"),
    KeySpec("transcript.summary", "s", "toggle_summary", "Show or fold the summary of what was left out"),
    KeySpec("transcript.left", "h,left", "screen.branch(-1)", "The branch before, at the marked message"),
    KeySpec("transcript.right", "l,right", "screen.branch(1)", "The branch after, at the marked message"),
    KeySpec("transcript.back", "i", "screen.focus_composer", "Back to the composer"),
    KeySpec("chats.open", "enter", "open", "Open the chat", "open", True),
    KeySpec("chats.rename", "f2", "rename", "Rename", "rename", True),
    KeySpec("chats.pin", "ctrl+k", "pin", "Pin or unpin", "pin", True),
    KeySpec("chats.delete", "delete,ctrl+d", "delete", "Delete", "delete", True),
    KeySpec("chats.undo", "ctrl+r", "undo", "Undo the last delete", "undo", True),
    KeySpec("chats.export", "ctrl+s", "export", "Export to Markdown or JSON", "export", True),
    KeySpec("chats.import", "ctrl+o", "import_file", "Import chats from a JSON file", "import", True),
    KeySpec("chats.back", "escape", "back", "Back to the chat", "back", True),
    KeySpec(
        "models.load", "enter", "choose", "Load the model; of one on the hub choose what to download", "load/get", True
    ),
    KeySpec("models.sort", "ctrl+s", "sort", "Sort by fit, size, speed or date", "sort", True),
    KeySpec("models.plan", "f4", "plan", "Plan exactly, from the header on the hub (a few MB)", "plan", True),
    KeySpec("models.downloads", "f5", "downloads", "To the downloads and back", "downloads", True),
    KeySpec("models.refresh", "ctrl+r", "refresh", "Look again: folders and hub", "refresh", True),
    KeySpec("models.verify", "f8", "verify", "Check the files against the hub's sha256", "verify", True),
    KeySpec("models.delete", "ctrl+d", "delete", "Delete from the models folder", "delete", True),
    KeySpec("models.details_down", "ctrl+down", "details(1)", "Scroll the details down", "", True),
    KeySpec("models.details_up", "ctrl+up", "details(-1)", "Scroll the details up", "", True),
    KeySpec("models.back", "escape", "back", "Back to the chat", "back", True),
    KeySpec("downloads.load", "enter", "load", "Load it when it is complete; else pause or resume"),
    KeySpec("downloads.toggle", "space,p", "pause_resume", "Pause or resume", "pause/resume"),
    KeySpec("downloads.cancel", "x,delete", "cancel", "Cancel and delete what came, or take it off the list", "cancel"),
    KeySpec("downloads.up", "up,k", "move(-1)", "The download before"),
    KeySpec("downloads.down", "down,j", "move(1)", "The next download"),
    KeySpec("experts.up", "up,k", "move(-1,0)", "A layer up"),
    KeySpec("experts.down", "down,j", "move(1,0)", "A layer down"),
    KeySpec("experts.left", "left", "move(0,-1)", "An expert left"),
    KeySpec("experts.right", "right", "move(0,1)", "An expert right"),
    KeySpec("experts.page_up", "pageup,shift+up", "move(-8,0)", "Eight layers up"),
    KeySpec("experts.page_down", "pagedown,shift+down", "move(8,0)", "Eight layers down"),
    KeySpec("experts.far_left", "shift+left,home", "move(0,-16)", "Sixteen experts left"),
    KeySpec("experts.far_right", "shift+right,end", "move(0,16)", "Sixteen experts right"),
    KeySpec("experts.sort", "s", "sort", "Experts by number, or most used first", "sort"),
    KeySpec("experts.hottest", "h", "hottest", "To the hottest expert that is on SSD", "hot on SSD"),
    KeySpec("experts.curve", "c", "curve", "What each budget would hit, under the map", "budget curve"),
    KeySpec("experts.back", "escape,q,ctrl+e", "back", "Back", "back", True),
    KeySpec("replay.pause", "space", "pause", "Pause, go on", "pause"),
    KeySpec("replay.slower", "minus", "speed(-1)", "Slower", "slower"),
    KeySpec("replay.faster", "plus,equals_sign", "speed(1)", "Faster", "faster"),
    KeySpec("replay.back", "left", "seek(-10)", "10 s back", "−10 s"),
    KeySpec("replay.forward", "right", "seek(10)", "10 s on", "+10 s"),
    KeySpec("replay.far_back", "pageup", "seek(-60)", "A minute back"),
    KeySpec("replay.far_forward", "pagedown", "seek(60)", "A minute on"),
    KeySpec("replay.start", "home", "seek_to(0)", "To the start"),
    KeySpec("replay.end", "end", "seek_to(1)", "To the end"),
    KeySpec("watch.span", "t", "span", "Curves over 30 s, 2 min, 10 min, 1 h, the session", "time"),
    KeySpec("watch.experts", "e,ctrl+e", "experts", "The full-screen expert map", "experts"),
    KeySpec("watch.quit", "q,escape", "app.quit", "Quit", "quit"),
)
"""All bindings with an id, in the order that F1 lists them."""

SCOPE_TITLES: dict[str, str] = {
    "app": "Everywhere",
    "chat": "Main screen",
    "composer": "While typing",
    "field": "In every text field",
    "transcript": "In the chat (Tab moves between composer and chat)",
    "chats": "List of chats",
    "models": "Models",
    "downloads": "Downloads (F5 in the models)",
    "experts": "Expert map",
    "watch": "top and replay",
    "replay": "In a replay",
}

# Scopes that are alive together: a key may mean only one thing in each of these sets.
_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset({"app", "chat", "composer", "field"}),
    frozenset({"app", "chat", "transcript"}),
    frozenset({"app", "chats"}),
    frozenset({"app", "models"}),
    frozenset({"app", "experts"}),
    frozenset({"watch", "replay"}),
)

_MODIFIERS = frozenset({"ctrl", "alt", "shift", "super", "meta", "hyper"})
_KEY = re.compile(r"(?:[a-z]+\+)*(?:[a-z_0-9]+|\S)\Z", re.IGNORECASE)


def bindings(scope: str) -> list[BindingType]:
    """Textual bindings of one scope, with their ids, for a screen's or widget's ``BINDINGS``."""
    return [
        Binding(spec.keys, spec.action, spec.description, show=bool(spec.label), priority=spec.priority, id=spec.id)
        for spec in KEYS
        if spec.scope == scope
    ]


class Keymap(NamedTuple):
    """The keys in force: by id, the problems found, and what to hand to `App.set_keymap`."""

    keys: dict[str, str]
    problems: tuple[str, ...]
    overrides: dict[str, str]

    def display(self, binding_id: str) -> str:
        """The first key of an action as people write it: ``^O``, ``Esc``, ``F1``; empty where there is none."""
        keys = self.keys.get(binding_id, "")
        return display_key(keys.split(",")[0]) if keys else ""

    def display_all(self, binding_id: str) -> str:
        """All keys of an action, joined with commas."""
        return ", ".join(display_key(key) for key in self.keys.get(binding_id, "").split(",") if key)


_NAMES = {
    "escape": "Esc",
    "enter": "Enter",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "delete": "Del",
    "space": "Space",
    "minus": "-",
    "plus": "+",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "home": "Home",
    "end": "End",
    "tab": "Tab",
    "backspace": "Bksp",
}


def display_key(key: str) -> str:
    """``ctrl+o`` as ``^O``, ``alt+left`` as ``Alt+←``, ``shift+enter`` as ``Shift+Enter``."""
    *modifiers, name = key.split("+") if key != "+" else ["+"]
    shown = _NAMES.get(name, name.upper() if len(name) <= 3 and name[:1] == "f" and name[1:].isdigit() else name)
    if modifiers == ["ctrl"] and len(name) == 1:
        return f"^{name.upper()}"
    return "+".join([*(modifier.capitalize() for modifier in modifiers), shown])


def valid_key(key: str) -> bool:
    """Whether `key` is in Textual's notation; its existence on the user's keyboard can't be known."""
    if not _KEY.match(key):
        return False
    *modifiers, name = key.split("+")
    return all(modifier in _MODIFIERS for modifier in modifiers) and (
        len(name) == 1 or re.fullmatch(r"f\d{1,2}|[a-z_]+", name) is not None
    )


def resolve(user: Mapping[str, str | Iterable[str]]) -> Keymap:
    """The keys in force for the config's ``keys`` section. Bad entries are named and their defaults kept."""
    specs = {spec.id: spec for spec in KEYS}
    keys = {spec.id: spec.keys for spec in KEYS}
    problems: list[str] = []
    wanted: dict[str, str] = {}
    for binding_id, value in user.items():
        if binding_id not in specs:
            problems.append(f"keys.{binding_id}: there is no such action{_suggest(binding_id, specs)}.")
            continue
        listed = value.split(",") if isinstance(value, str) else list(value)
        listed = [key.strip() for key in listed if key.strip()]
        bad = [key for key in listed if not valid_key(key)]
        if bad or not listed:
            what = f"'{bad[0]}' is no key" if bad else "no key is given"
            problems.append(f"keys.{binding_id}: {what}; write it like ctrl+k, f4 or alt+left.")
            continue
        wanted[binding_id] = ",".join(listed)
    accepted = dict(wanted)
    while True:  # a refused remapping falls back to its default, which may collide with another: until it is stable
        final = {**keys, **accepted}
        clash = _first_clash(final, accepted)
        if clash is None:
            break
        loser, other, key = clash
        problems.append(
            f"keys.{loser}: {display_key(key)} is already '{specs[other].description.split(':')[0]}' ({other}); "
            f"{display_key(keys[loser].split(',')[0])} stays."
        )
        del accepted[loser]
    return Keymap({**keys, **accepted}, tuple(problems), accepted)


def _first_clash(final: Mapping[str, str], accepted: Mapping[str, str]) -> tuple[str, str, str] | None:
    for together in _TOGETHER:
        owner: dict[str, str] = {}
        for spec in KEYS:
            if spec.scope not in together:
                continue
            for key in final[spec.id].split(","):
                other = owner.setdefault(key, spec.id)
                if other == spec.id:
                    continue
                if spec.id in accepted:
                    return spec.id, other, key
                if other in accepted:
                    return other, spec.id, key
    return None


def _suggest(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}" if close else ""
