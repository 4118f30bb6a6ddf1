"""The table of all keys: stable ids, actions, descriptions; the set for people who know a shell, and the classic one.

What acts on the chat has a key behind the leader ``^X``, as in ``^X n``: two keys, one after the other, so that the
editing keys of a shell keep their meaning while a question is typed. F-keys are second, since tmux, byobu, VS Code and
browsers take some of them.
"""

from __future__ import annotations

from typing import NamedTuple


class KeySpec(NamedTuple):
    """One action with its keys.

    `keys` is comma-separated in Textual's names (``ctrl+j``, ``f1``); ``ctrl+x n`` is one key after the other."""

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
    KeySpec("app.help", "f1,ctrl+x h", "app.help", "Help: keys, panes, what to do when it is slow", "help", True),
    KeySpec(
        "app.palette", "ctrl+x x,alt+x", "app.command_palette", "Commands: everything you can do", "commands", True
    ),
    KeySpec("app.quit", "ctrl+q,ctrl+x q", "app.quit", "Quit; chats are saved, the engine stops", "", True),
    KeySpec(
        "app.suspend", "ctrl+z", "app.suspend_process", "Put the app in the background; fg brings it back", "", True
    ),
    KeySpec("app.interrupt", "ctrl+c", "app.interrupt", "Stop the answer; press twice to quit", "", True),
    KeySpec("app.theme", "ctrl+x T", "app.themes", "Theme: choose the colours, with a live preview", "", True),
    KeySpec("app.redraw", "ctrl+l", "app.redraw", "Redraw the screen", "", True),
    KeySpec("chat.models", "ctrl+o,ctrl+x o", "models", "Models: choose, download, plan", "models", True),
    KeySpec("chat.new", "ctrl+x n", "new_chat", "New chat", "new", True),
    KeySpec("chat.chats", "ctrl+t,ctrl+x t", "chats", "Chats: list, search, rename, export", "chats", True),
    KeySpec("chat.find", "ctrl+f,ctrl+x f", "find", "Find in this chat", "", True),
    KeySpec("chat.search", "ctrl+x slash", "search_chats", "Search in all chats", "", True),
    KeySpec("chat.experts", "ctrl+x m", "experts", "Experts: the full-screen map", "experts", True),
    KeySpec("chat.monitor", "ctrl+x p,f2", "monitor", "Fold or open the monitor", "", True),
    KeySpec(
        "chat.span", "ctrl+x l", "monitor_span", "Monitor: curves over 30 s, 2 min, 10 min, 1 h, the session", "", True
    ),
    KeySpec("chat.settings", "ctrl+x i,f3", "settings", "Settings of this chat: system prompt, sampling", "", True),
    KeySpec("chat.downloads", "ctrl+x j,f5", "downloads", "Downloads", "", True),
    KeySpec("chat.stop", "escape", "stop", "Stop the answer and keep what was written; cancel a load", "stop", True),
    KeySpec("chat.continue", "ctrl+x g,ctrl+g", "continue_answer", "Continue an answer that was cut short", "", True),
    KeySpec(
        "chat.regenerate",
        "ctrl+x r",
        "regenerate",
        "Regenerate the answer; the old one stays as a branch",
        "again",
        True,
    ),
    KeySpec(
        "chat.edit",
        "ctrl+x e,f4",
        "edit_question",
        "Edit the last or the marked question: a new branch",
        "",
        True,
    ),
    KeySpec("chat.branch_left", "alt+left,ctrl+x left", "branch(-1)", "The previous branch", "", True),
    KeySpec("chat.branch_right", "alt+right,ctrl+x right", "branch(1)", "The next branch", "", True),
    KeySpec(
        "chat.show_all", "ctrl+x w,f10", "show_all", "Put messages that were left out back into the context", "", True
    ),
    KeySpec("chat.copy", "ctrl+x y", "copy_answer", "Copy the last answer (or the marked message)", "", True),
    KeySpec(
        "chat.copy_code",
        "ctrl+x c,f7",
        "copy_code",
        "Copy the last code block; press again for the previous one",
        "",
        True,
    ),
    KeySpec("chat.save", "ctrl+s,ctrl+x s", "save_answer", "Save the last answer to a file", "", True),
    KeySpec("chat.thinking", "ctrl+x k,f9", "thinking", "Show or fold the model's thinking", "", True),
    KeySpec("chat.attach", "ctrl+x a,f8", "attach", "Attach a text file", "", True),
    KeySpec("chat.page_up", "pageup", "scroll_page(-1)", "Scroll the chat up", "", True),
    KeySpec("chat.page_down", "pagedown", "scroll_page(1)", "Scroll the chat down", "", True),
    KeySpec("chat.top", "ctrl+home", "scroll_edge(-1)", "Start of the chat", "", True),
    KeySpec("chat.end", "ctrl+end", "scroll_edge(1)", "End of the chat; follow the answer again", "", True),
    KeySpec("composer.send", "enter", "send", "Send", "", True),
    KeySpec("composer.newline", "alt+enter,shift+enter,ctrl+j", "newline", "Break the line", "", True),
    KeySpec("composer.history_prev", "up", "history(-1)", "On the first line: the previous prompt"),
    KeySpec("composer.history_next", "down", "history(1)", "On the last line: the next prompt"),
    KeySpec("composer.prompt_prev", "ctrl+p", "prompt(-1)", "The previous prompt"),
    KeySpec("composer.prompt_next", "ctrl+n", "prompt(1)", "The next prompt"),
    KeySpec("composer.history_search", "ctrl+r", "search_prompts", "Search the prompts; press again for an older one"),
    KeySpec("composer.complete", "tab", "complete", "Complete a / command; otherwise move to the chat"),
    KeySpec("composer.delete_or_quit", "ctrl+d", "delete_or_quit", "Delete a character; in an empty composer: quit"),
    KeySpec("composer.editor", "ctrl+x ctrl+e,f6", "editor", "Write in $VISUAL or $EDITOR", "", True),
    KeySpec(
        "composer.clear", "ctrl+x ctrl+k", "cut_all", "Cut the whole question; put it back like any other cut", "", True
    ),
    KeySpec("field.start", "ctrl+a", "line_start", "Start of the line"),
    KeySpec("field.end", "ctrl+e", "line_end", "End of the line"),
    KeySpec("field.kill_end", "ctrl+k", "kill_to_end", "Cut the rest of the line"),
    KeySpec("field.kill_start", "ctrl+u", "kill_to_start", "Cut the line up to the cursor"),
    KeySpec("field.kill_word", "ctrl+w", "kill_word", "Cut the word before the cursor"),
    KeySpec("field.kill_letters", "alt+backspace", "kill_letters", "Cut the word before, up to punctuation"),
    KeySpec("field.kill_ahead", "alt+d", "kill_word_ahead", "Cut the word after the cursor"),
    KeySpec("field.yank", "ctrl+y", "yank", "Put back what was cut last"),
    KeySpec("field.word_left", "alt+b,ctrl+left", "cursor_word_left", "A word left"),
    KeySpec("field.word_right", "alt+f,ctrl+right", "cursor_word_right", "A word right"),
    KeySpec("transcript.up", "k,up", "mark(-1)", "Mark the previous message (Tab moves here from the composer)", "up"),
    KeySpec("transcript.down", "j,down", "mark(1)", "Mark the next message"),
    KeySpec("transcript.first", "g,home", "mark_edge(-1)", "Mark the first message"),
    KeySpec("transcript.last", "G,end", "mark_edge(1)", "Mark the last message"),
    KeySpec("transcript.edit", "e", "screen.edit_question", "Edit the marked question", "edit"),
    KeySpec("transcript.copy", "y,c", "screen.copy_answer", "Copy the marked message", "copy"),
    KeySpec(
        "transcript.fold", "enter,space", "toggle_thinking", "Show or fold its thinking, or a long question", "unfold"
    ),
    KeySpec("transcript.summary", "s", "toggle_summary", "Show or fold the summary of what was left out"),
    KeySpec("transcript.left", "h,left", "screen.branch(-1)", "The previous branch, at the marked message"),
    KeySpec("transcript.right", "l,right", "screen.branch(1)", "The next branch, at the marked message"),
    KeySpec("transcript.back", "i", "screen.focus_composer", "Back to the composer", "back"),
    KeySpec("chats.open", "enter", "open", "Open the chat", "open", True),
    KeySpec("chats.rename", "ctrl+x r,f2", "rename", "Rename", "rename", True),
    KeySpec("chats.pin", "ctrl+x p,f4", "pin", "Pin or unpin", "pin", True),
    KeySpec("chats.delete", "ctrl+x d,f8,delete", "delete", "Delete", "delete"),
    KeySpec("chats.undo", "ctrl+x u,f6", "undo", "Undo the last delete", "undo", True),
    KeySpec("chats.export", "ctrl+s", "export", "Export to Markdown or JSON", "export", True),
    KeySpec("chats.import", "ctrl+o", "import_file", "Import chats from a JSON file", "import", True),
    KeySpec("chats.back", "escape", "back", "Back to the chat", "back", True),
    KeySpec("models.load", "enter", "choose", "Load the model, or choose which file to download", "load/get", True),
    KeySpec("models.sort", "ctrl+s", "sort", "Sort by fit, size, speed or date", "sort", True),
    KeySpec("models.plan", "ctrl+x p,f4", "plan", "Plan exactly, from the header on the hub (a few MB)", "plan", True),
    KeySpec("models.downloads", "ctrl+x j,f5", "downloads", "To the downloads and back", "downloads", True),
    KeySpec("models.refresh", "ctrl+r,ctrl+x r", "refresh", "Rescan the folders and the hub", "refresh", True),
    KeySpec("models.verify", "ctrl+x v,f8", "verify", "Verify the files against the hub's sha256", "verify", True),
    KeySpec("models.delete", "ctrl+x d,delete", "delete", "Delete from the models folder", "delete"),
    KeySpec("models.details_down", "ctrl+down", "details(1)", "Scroll the details down", "", True),
    KeySpec("models.details_up", "ctrl+up", "details(-1)", "Scroll the details up", "", True),
    KeySpec("models.back", "escape", "back", "Back to the chat", "back", True),
    KeySpec("downloads.load", "enter", "load", "Load if complete, otherwise pause or resume"),
    KeySpec("downloads.toggle", "space,p", "pause_resume", "Pause or resume", "pause/resume"),
    KeySpec(
        "downloads.cancel",
        "x,delete",
        "cancel",
        "Cancel and delete the download, or remove it from the list",
        "cancel",
    ),
    KeySpec("downloads.up", "up,k", "move(-1)", "The previous download"),
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
    KeySpec("experts.curve", "c", "curve", "Hit rate by memory budget", "budget curve"),
    KeySpec("experts.back", "escape,q", "back", "Back", "back", True),
    KeySpec("replay.pause", "space", "pause", "Pause or resume", "pause"),
    KeySpec("replay.slower", "minus", "speed(-1)", "Slower", "slower"),
    KeySpec("replay.faster", "plus,equals_sign", "speed(1)", "Faster", "faster"),
    KeySpec("replay.back", "left", "seek(-10)", "10 s back", "−10 s"),
    KeySpec("replay.forward", "right", "seek(10)", "10 s forward", "+10 s"),
    KeySpec("replay.far_back", "pageup", "seek(-60)", "A minute back"),
    KeySpec("replay.far_forward", "pagedown", "seek(60)", "A minute forward"),
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
    "downloads": "Downloads (in the list of models)",
    "experts": "Expert map",
    "watch": "top and replay",
    "replay": "In a replay",
}

TOGETHER: tuple[frozenset[str], ...] = (
    frozenset({"app", "chat", "composer", "field"}),
    frozenset({"app", "chat", "transcript"}),
    frozenset({"app", "chats"}),
    frozenset({"app", "models"}),
    frozenset({"app", "experts"}),
    frozenset({"watch", "replay"}),
)
"""Scopes that are alive together: a key may mean only one thing in each of these sets."""

CLASSIC: dict[str, str] = {
    "app.help": "f1",
    "app.palette": "ctrl+p",
    "app.quit": "ctrl+q",
    "chat.models": "ctrl+o",
    "chat.new": "ctrl+n",
    "chat.chats": "ctrl+t",
    "chat.search": "ctrl+f",
    "chat.experts": "ctrl+e",
    "chat.monitor": "f2",
    "chat.span": "ctrl+l",
    "chat.settings": "f3",
    "chat.downloads": "f5",
    "chat.continue": "ctrl+g",
    "chat.regenerate": "ctrl+r",
    "chat.edit": "f4",
    "chat.branch_left": "alt+left",
    "chat.branch_right": "alt+right",
    "chat.show_all": "f10",
    "chat.copy": "ctrl+y",
    "chat.copy_code": "f7",
    "chat.save": "ctrl+s",
    "chat.thinking": "f9",
    "chat.attach": "f8",
    "composer.newline": "shift+enter,ctrl+j",
    "composer.editor": "f6",
    "chats.rename": "f2",
    "chats.pin": "ctrl+k",
    "chats.delete": "delete,ctrl+d",
    "chats.undo": "ctrl+r",
    "models.plan": "f4",
    "models.downloads": "f5",
    "models.refresh": "ctrl+r",
    "models.verify": "f8",
    "models.delete": "ctrl+d",
    "experts.back": "escape,q,ctrl+e",
    "app.redraw": "alt+l",
    "chat.find": "ctrl+x f",
    "composer.prompt_prev": "alt+p",
    "composer.prompt_next": "alt+n",
    "composer.history_search": "alt+r",
    "composer.delete_or_quit": "alt+q",
    "field.end": "alt+e",
    "field.yank": "alt+y",
}
"""The set `classic`: the keys before there was a leader, where they differ."""

SETS: dict[str, dict[str, str]] = {"standard": {}, "classic": CLASSIC}
"""Named sets of keys, as differences from the table (``keys: {set: classic}``)."""
