"""The empty chat: says what this is, what to do first, and offers questions where the guide is loaded."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Center, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

GUIDE_QUESTIONS = (
    "What is an expert?",
    "Why is a model slow when it is larger than my RAM?",
    "How do I choose a model for this machine?",
)


class Welcome(Vertical):
    """Shown while nothing was said."""

    DEFAULT_CSS = """
    Welcome { height: 1fr; align: center middle; padding: 0 2; }
    Welcome > Static { width: 1fr; height: auto; text-align: center; }
    Welcome > .head { margin: 0 0 1 0; }
    Welcome > .hint { color: $text-muted; margin: 1 0 0 0; }
    Welcome > Center { height: auto; margin: 1 0 0 0; display: none; }
    Welcome.-guide > Center { display: block; }
    Welcome OptionList {
        width: 54; max-width: 100%; height: auto; border: none; background: $background; padding: 0;
    }
    Welcome OptionList > .option-list--option { padding: 0 1; }
    Welcome OptionList > .option-list--option-highlighted { background: $background; color: $foreground; }
    """

    class Asked(Message):
        """One of the offered questions was chosen."""

        def __init__(self, question: str) -> None:
            super().__init__()
            self.question = question

    def __init__(self) -> None:
        super().__init__(id="welcome")
        self._hint = ""

    def compose(self) -> ComposeResult:
        """A heading, a sentence, a hint; the questions come with the guide."""
        yield Static(Content.styled("flashmoe", "bold $primary"), classes="head")
        yield Static(Content(), classes="line")
        yield Static(Content(), classes="hint")

    def say(self, line: str, hint: str, *, guide: bool) -> None:
        """What stands here now. With `guide` the questions are offered."""
        self.query_one(".line", Static).update(Content(line))
        self._hint = hint
        self._lay_hint()
        self.set_class(guide, "-guide")
        if guide and not self.query(OptionList):
            questions = OptionList(*(Option(question, id=question) for question in GUIDE_QUESTIONS), id="suggestions")
            self.mount(Center(questions), before=".hint")

    def on_resize(self) -> None:
        """As many parts of the hint side by side as fit."""
        self._lay_hint()

    def _lay_hint(self) -> None:
        """A key stays with what it does: lines break between the parts, which three blanks keep apart."""
        lines: list[str] = []
        for part in self._hint.split("   "):
            if lines and len(lines[-1]) + 3 + len(part) <= self.content_size.width:
                lines[-1] += "   " + part
            else:
                lines.append(part)
        self.query_one(".hint", Static).update(Content("\n".join(lines)))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Asks."""
        event.stop()
        self.post_message(self.Asked(str(event.option.id)))
