"""One message of the chat: the user's as plain text, the model's as Markdown with its thinking and its figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from flashmoe import figures
from flashmoe.text_safety import SafeStream, visible, visible_line
from tui.chat.conversation import Turn
from tui.widgets.transcript.lit import lit
from tui.widgets.transcript.settled import Even, Settled

if TYPE_CHECKING:
    from tui.widgets.transcript.safe_markdown import SafeMarkdown

FOLD_LINES = 40
"""A user's message longer than this is folded in the chat (it is sent whole)."""
LIVE_THINKING_LINES = 4

_ENDINGS = {
    "cancelled": "stopped",
    "length": "cut at the length limit",
    "context": "cut: the context is full",
    "died": "cut: the engine stopped",
    "error": "not answered",
}


class MessageView(Vertical, Settled, Even):
    """Common to both: the mark of the reader's cursor, and the turn that is shown."""

    DEFAULT_CSS = """
    MessageView { height: auto; margin: 0 0 1 0; border-left: blank; padding: 0 1; }
    """

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self.set_class(turn.dropped, "-dropped")

    async def toggle_thinking(self) -> None:
        """Unfolds or folds what isn't shown: what the model thought, the rest of a long question."""

    def unfold(self, *, thinking: bool) -> None:
        """Shows what is folded, as something was found there."""


class QuestionView(MessageView):
    """What the user said."""

    DEFAULT_CSS = """
    QuestionView { border-left: outer $primary; background: $surface; }
    QuestionView > Static { height: auto; }
    """

    _open = False

    async def toggle_thinking(self) -> None:
        """Shows or folds a long question."""
        self._open = not self._open
        self.refresh_turn()

    def unfold(self, *, thinking: bool) -> None:
        """Shows all of it."""
        if not self._open and not thinking:
            self._open = True
            self.refresh_turn()

    def compose(self) -> ComposeResult:
        """A heading and the text, never interpreted."""
        yield Static(self._content(), markup=False)

    def light_changed(self) -> None:
        """Another text is lit."""
        if self.query(Static):
            self.refresh_turn()

    def refresh_turn(self) -> None:
        """After a branch was added beside this message."""
        self.query_one(Static).update(self._content())

    def _content(self) -> Content:
        turn = self.turn
        head: list[Content | tuple[str, str]] = [("You", "bold $text-primary"), branch_mark(turn)]
        if turn.dropped:
            head.append(("  left out of the context", "$foreground-muted"))
        lines = visible(turn.content).split("\n")
        shown = len(lines) if self._open else FOLD_LINES
        text = Content("\n".join(lines[:shown]))
        if len(lines) > shown:
            text = Content.assemble(text, (f"\n▸ {len(lines) - shown:,} more lines", "$foreground-muted"))
        parts = [Content.assemble(*head)]
        parts += [
            Content.assemble(
                ("+ ", "$text-primary"),
                visible_line(item.name, 60),
                (f"  {figures.size(len(item.text))}", "$foreground-muted"),
            )
            for item in turn.attachments
        ]
        if turn.content:
            parts.append(lit(text))
        return Content("\n").join(parts)


class AnswerView(MessageView):
    """What the model said: thinking (one line once it ended), the text, and a line of figures."""

    DEFAULT_CSS = """
    AnswerView > .thinking { height: auto; color: $text-muted; }
    AnswerView > .thinking.-open { border-left: solid $border; padding: 0 0 0 1; }
    AnswerView > .plain { height: auto; }
    AnswerView > .figures { height: auto; color: $text-muted; display: none; }
    AnswerView.-ended > .figures { display: block; }
    AnswerView > .figures.-some { margin: 1 0 0 0; }
    """

    def __init__(self, turn: Turn, *, markdown: bool = True) -> None:
        super().__init__(turn)
        self._markdown = markdown
        self._open = False
        self._thinking_since: float | None = None
        self._thinking_shown = ""
        self._stream, self._thoughts = SafeStream(), SafeStream()
        self._shown = ""
        self._drawn = False

    def compose(self) -> ComposeResult:
        """Thinking, text, figures."""
        turn = self.turn
        self._shown = visible(turn.content)
        self._thinking_shown = visible(turn.thinking)
        thinking = Static(self._thinking_content(), markup=False, classes="thinking")
        thinking.display = bool(turn.thinking)
        yield thinking
        if self._markdown:
            from tui.widgets.transcript.safe_markdown import SafeMarkdown  # 50 ms that the first paint doesn't wait for

            yield SafeMarkdown(self._shown)
        else:
            yield Static(Content(self._shown), markup=False, classes="plain")
        figures_line = Static(self._figures(), markup=False, classes="figures")
        figures_line.set_class(bool(self._shown), "-some")
        yield figures_line
        self.set_class(bool(turn.ending), "-ended")

    async def on_mount(self) -> None:
        """What came between the drawing of the text and now, where the answer is still being written."""
        self._drawn = True
        text = visible(self.turn.content)
        if not self.turn.ending and len(text) > len(self._shown):
            await self._append(text[len(self._shown) :])

    # ---- streaming ------------------------------------------------------------------------------------------------

    async def feed(self, parts: list[tuple[str, str]]) -> None:
        """Shows new pieces of (kind, text); the turn itself was extended by the caller."""
        if not self._drawn or not self.children:  # hardly there, or on its way out since another chat is shown
            return
        answer: list[str] = []
        for kind, text in parts:
            if kind == "thinking":
                if self._thinking_since is None:
                    self._thinking_since = time.monotonic()
                self._thinking_shown += self._thoughts.feed(text)
            else:
                answer.append(self._stream.feed(text))
        if any(kind == "thinking" for kind, _ in parts):
            self._update_thinking()
        if answer:
            if self._thinking_since is not None:
                self.end_thinking()
            await self._append("".join(answer))

    async def _append(self, text: str) -> None:
        self._shown += text
        if self._markdown:
            self._rendered().append(text)
        else:
            self.query_one(".plain", Static).update(Content(self._shown))

    def _rendered(self) -> SafeMarkdown:
        from tui.widgets.transcript.safe_markdown import SafeMarkdown

        return self.query_one(SafeMarkdown)

    def end_thinking(self) -> float | None:
        """Folds the thinking; how long it took, None where there was none."""
        if self._thinking_since is None:
            return None
        taken = time.monotonic() - self._thinking_since
        self._thinking_since = None
        self._thought_s = taken
        self._update_thinking()
        return taken

    _thought_s: float | None = None

    async def end(self) -> None:
        """The answer ended: what was held back is shown, and the whole text is rendered once more as one."""
        self._shown += self._stream.end()
        if not self.is_attached:
            return
        if not self._shown.strip():  # what it thought is all that there is to read
            self._open = True
        self.end_thinking()
        if self._markdown:
            markdown = self._rendered()
            if markdown.source or self._shown:
                markdown.update(self._shown)
        self.refresh_turn()

    def refresh_turn(self) -> None:
        """After figures, ending or branches of the turn changed."""
        if not self.query(".figures"):  # another chat was opened in the moment that this answer ended
            return
        self.set_class(bool(self.turn.ending), "-ended")
        line = self.query_one(".figures", Static)
        line.set_class(bool(self._shown), "-some")
        line.update(self._figures())
        self._update_thinking()

    # ---- thinking -------------------------------------------------------------------------------------------------

    async def toggle_thinking(self) -> None:
        """Unfolds or folds what the model thought."""
        if self._thinking_shown:
            self._open = not self._open
            self._update_thinking()

    def unfold(self, *, thinking: bool) -> None:
        """Shows what it thought."""
        if thinking and not self._open:
            self._open = True
            self._update_thinking()

    def light_changed(self) -> None:
        """Another text is lit."""
        if self._open and self.query(".thinking"):
            self._update_thinking()

    def _update_thinking(self) -> None:
        widget = self.query_one(".thinking", Static)
        widget.display = bool(self._thinking_shown.strip())
        widget.set_class(self._open or self._thinking_since is not None, "-open")
        widget.update(self._thinking_content())

    def _thinking_content(self) -> Content:
        text = self._thinking_shown.strip()
        if self._thinking_since is not None:
            lines = text.split("\n") if self._open else text.split("\n")[-LIVE_THINKING_LINES:]
            shown = "\n".join(line if self._open else line[-400:] for line in lines)
            return Content.assemble(("▾ thinking\n", "italic"), shown)
        seconds = self._thought_s
        if seconds is None and self.turn.figures is not None:
            seconds = self.turn.figures.thinking_s
        head = f"thought for {figures.duration(seconds)}" if seconds is not None else "thought"
        if self._open:
            return Content.assemble((f"▾ {head}\n", "italic"), lit(Content(text)))
        return Content.styled(f"▸ {head}", "italic")

    # ---- figures --------------------------------------------------------------------------------------------------

    def _figures(self) -> Content:
        turn, parts = self.turn, list[str]()
        taken = turn.figures
        if turn.ending == "error" and turn.content:
            parts.append("broke off")
        elif turn.ending in _ENDINGS:
            parts.append(_ENDINGS[turn.ending])
        elif turn.ending and turn.thinking and not turn.content:
            parts.append("thought, and wrote no answer")
        if turn.model:
            parts.append(visible_line(turn.model, 32))
        if taken is not None and taken.completion_tokens is not None:
            parts.append(f"{taken.completion_tokens:,} tokens")
            if taken.tok_s is not None:
                parts.append(f"{figures.speed(taken.tok_s)} tok/s")
            if taken.hit_rate is not None:
                parts.append(f"hit {taken.hit_rate:.0%}")
        line = Content.assemble(Content(" · ".join(parts)), branch_mark(turn))
        if turn.error:
            sentence = Content.styled(f"✗ {visible_line(turn.error, 500)}", "$text-error")
            return Content("\n").join([sentence, line]) if line.plain else sentence
        return line


def branch_mark(turn: Turn) -> Content:
    """``  ‹2/3›`` where a turn has alternatives."""
    if turn.variants < 2:
        return Content()
    return Content.styled(f"  ‹{turn.variant}/{turn.variants}›", "bold $text-accent")


def view_of(turn: Turn, *, markdown: bool) -> MessageView:
    """The widget for a turn."""
    return QuestionView(turn) if turn.role == "user" else AnswerView(turn, markdown=markdown)
