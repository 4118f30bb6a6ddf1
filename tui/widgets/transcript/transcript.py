"""The chat as a scroll of messages, of which only those near the reader are mounted.

Five hundred messages of Markdown would be thousands of widgets, and each new token lays out every mounted one. So the
end of the chat is mounted, older messages come in when the reader scrolls up, and leave when they scroll back.
"""

from __future__ import annotations

import asyncio

from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from flashmoe.history.records import ContextCut
from tui.chat.conversation import Turn
from tui.keymap import Keymap, bindings
from tui.widgets.transcript.cut_line import CutLine
from tui.widgets.transcript.message_view import AnswerView, MessageView, view_of
from tui.widgets.transcript.settled import Even
from tui.widgets.transcript.tail import TailScroll

TAIL_SCREENS = 2
"""What is mounted at the end of the chat, in heights of it, as far as that can be estimated."""
STEP = 6
"""Messages that come in at a time when the reader scrolls up."""
MOST = 30
"""Mounted messages; beyond it those farthest below the reader leave."""


def _lines(turn: Turn, width: int) -> int:
    return 3 + len(turn.content) // width + turn.content.count("\n")


class Transcript(TailScroll, Even):
    """Follows the tail until the reader scrolls. Focus gives it a cursor that marks one message."""

    BINDINGS = bindings("transcript")

    DEFAULT_CSS = """
    Transcript { padding: 0 1; scrollbar-size-vertical: 1; background: $background; height: 1fr; }
    Transcript > .more { height: 1; color: $text-muted; content-align: center middle; }
    """

    class Marked(Message):
        """The reader's cursor moved to a message; None: it left."""

        def __init__(self, turn: Turn | None) -> None:
            super().__init__()
            self.turn = turn

    def __init__(self, keymap: Keymap, *, markdown: bool = True) -> None:
        super().__init__(id="transcript")
        self._keymap = keymap
        self._markdown = markdown
        self.turns: list[Turn] = []
        self._cut: ContextCut | None = None
        self._start = 0
        self._end = 0
        self._lock = asyncio.Lock()
        self._extending = False
        self.marked: Turn | None = None

    # ---- content --------------------------------------------------------------------------------------------------

    @property
    def views(self) -> list[MessageView]:
        """The mounted messages, oldest first."""
        return [child for child in self.children if isinstance(child, MessageView)]

    def view(self, turn: Turn) -> MessageView | None:
        """The mounted widget of a turn."""
        return next((view for view in self.views if view.turn is turn), None)

    async def show(self, turns: list[Turn], cut: ContextCut | None = None, *, keep_scroll: bool = False) -> None:
        """Replaces everything. Messages that stay at the front of the list keep their widgets."""
        async with self._lock:
            self._cut = cut
            same = 0
            for old, new in zip(self.turns, turns, strict=False):
                if old is not new:
                    break
                same += 1
            if same < self._start or same == 0 or self._end < len(self.turns):
                await self._rebuild(turns)
            else:
                leaving = [view for view in self.views if self.turns.index(view.turn) >= same]
                with self.app.batch_update():
                    for view in leaving:
                        await view.remove()
                    self.turns = list(turns)
                    self._end = len(turns)
                    start = max(same, self._tail_start(turns)) if same < len(turns) else same
                    if start > same:  # a long branch: only its end is mounted
                        await self._rebuild(turns)
                    elif turns[same:]:
                        await self.mount_all([view_of(turn, markdown=self._markdown) for turn in turns[same:]])
                    await self._place_cut()
            self._mark(None)
            if not keep_scroll:
                self.follow()

    async def _rebuild(self, turns: list[Turn]) -> None:
        self.turns = list(turns)
        self._start, self._end = self._tail_start(turns), len(turns)
        with self.app.batch_update():
            await self.remove_children()
            await self.mount_all([view_of(turn, markdown=self._markdown) for turn in turns[self._start :]])
            await self._update_more()
            await self._place_cut()
        self.call_after_refresh(self._fill)

    def _tail_start(self, turns: list[Turn]) -> int:
        screen = self.app.size  # before the first layout
        width, height = max(20, self.size.width or screen.width * 2 // 3), self.size.height or screen.height
        start, lines = len(turns), 0
        while start > 0 and (lines < TAIL_SCREENS * height or start > len(turns) - 2):
            start -= 1
            lines += _lines(turns[start], width)
        return start

    def on_resize(self) -> None:
        """A larger screen shows more."""
        self.call_after_refresh(self._fill)

    async def _fill(self) -> None:
        """While the chat leaves a part of the screen empty, older messages come in: nothing would scroll to them."""
        if not self._start or not self.size.height or self.max_scroll_y > 0:
            return
        async with self._lock:
            await self._mount_older()
        self.follow()
        self.call_after_refresh(self._fill)

    async def _mount_older(self) -> None:
        """Mounts some older messages."""
        start, first = max(0, self._start - STEP), next(iter(self.views), None)
        with self.app.batch_update():
            new = [view_of(turn, markdown=self._markdown) for turn in self.turns[start : self._start]]
            await self.mount_all(new, before=first)
            self._start = start
            await self._update_more()
            await self._place_cut()

    async def add(self, turn: Turn) -> MessageView:
        """A new message at the end."""
        async with self._lock:
            if self._end < len(self.turns):
                await self._rebuild(self.turns)
            view = view_of(turn, markdown=self._markdown)
            self.turns.append(turn)
            self._end = len(self.turns)
            await self.mount(view)
            await self._trim_top()
        return view

    async def _trim_top(self) -> None:
        """While the tail is followed, lets old messages leave so that a long chat stays as fast as a short one."""
        if not self.following:
            return
        start = self._tail_start(self.turns)
        if start - self._start >= STEP:
            leaving = self.views[: start - self._start]
            with self.app.batch_update():
                for view in leaving:
                    await view.remove()
                self._start = start
                await self._update_more()
                await self._place_cut()

    async def _update_more(self) -> None:
        more = self.query(".more")
        if self._start == 0:
            await more.remove()
            return
        text = Content(f"↑ {self._start} earlier message{'s' if self._start > 1 else ''}")
        if more:
            more.first(Static).update(text)
        else:
            await self.mount(Static(text, classes="more"), before=0)

    # ---- what the model is shown ----------------------------------------------------------------------------------

    async def show_cut(self, cut: ContextCut | None) -> None:
        """The model is shown more or less than before."""
        async with self._lock:
            self._cut = cut
            with self.app.batch_update():
                await self._place_cut()

    async def _place_cut(self) -> None:
        """Puts the line below the last message that the model isn't shown, and marks those above it."""
        for view in self.views:
            view.set_class(view.turn.dropped, "-dropped")
        count = sum(turn.dropped for turn in self.turns)
        place = self.views[-1] if self.views and self.views[-1].turn.dropped else None
        kept = next((view for view in self.views if not view.turn.dropped), None)
        lines = list(self.query(CutLine))
        in_reach = count >= self._start  # its place is on what is mounted, or right above it
        if self._cut is None or not count or not in_reach or (kept is None and self._end < len(self.turns)):
            for line in lines:
                await line.remove()
            return
        line = lines[0] if lines else CutLine(self._keymap)
        if not lines:
            await self.mount(line, before=kept, after=place if kept is None else None)
        elif kept is not None:
            self.move_child(line, before=kept)
        elif place is not None:
            self.move_child(line, after=place)
        line.show(self._cut, count)

    def action_toggle_summary(self) -> None:
        """Shows or folds the summary that the model is shown."""
        for line in self.query(CutLine):
            line.toggle()

    # ---- scrolling ------------------------------------------------------------------------------------------------

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Brings older messages in when the reader comes near the top, newer ones near the bottom."""
        super().watch_scroll_y(old_value, new_value)
        if self._extending or not self.is_mounted:
            return
        if new_value < old_value and new_value < self.size.height and self._start > 0:
            self._extending = True
            self.call_next(self.extend_up)
        elif new_value > old_value and self._end < len(self.turns) and new_value >= self.max_scroll_y - 3:
            self._extending = True
            self.call_next(self._extend_down)

    async def extend_up(self) -> None:
        """Mounts some older messages and keeps what the reader sees where it is."""
        try:
            async with self._lock:
                if self._start == 0:
                    return
                anchor = next(iter(self.views), None)
                before = anchor.virtual_region.y if anchor is not None else 0
                with self.app.batch_update():
                    await self._mount_older()
                    for view in self.views[MOST:]:
                        if not view.turn.writing:
                            await view.remove()
                            self._end -= 1

                def hold() -> None:
                    if anchor is not None and anchor.is_attached:
                        self.scroll_to(y=self.scroll_y + anchor.virtual_region.y - before, animate=False, force=True)

                self.call_after_refresh(hold)
        finally:
            self.call_after_refresh(self._extended)

    def _extended(self) -> None:
        self._extending = False

    async def _extend_down(self) -> None:
        try:
            async with self._lock:
                end = min(len(self.turns), self._end + STEP)
                new = [view_of(turn, markdown=self._markdown) for turn in self.turns[self._end : end]]
                self._end = end
                if new:
                    await self.mount_all(new)
                    await self._place_cut()
        finally:
            self.call_after_refresh(self._extended)

    def scroll_page(self, direction: int) -> None:
        """A page up or down, with two lines kept."""
        self.scroll_relative(y=direction * max(1, self.size.height - 2), animate=False)

    async def to_edge(self, direction: int) -> None:
        """The start or the end of the whole chat."""
        if direction > 0:
            async with self._lock:
                if self._end < len(self.turns):
                    await self._rebuild(self.turns)
            self.follow()
            return
        async with self._lock:
            if self._start > 0:
                self._start, self._end = 0, min(len(self.turns), STEP * 2)
                live = bool(self.turns) and self.turns[-1].writing
                if live:  # the answer that is being written stays mounted
                    self._end = len(self.turns)
                with self.app.batch_update():
                    keep = self.view(self.turns[-1]) if live else None
                    for child in list(self.children):
                        if child is not keep:
                            await child.remove()
                    shown = self.turns[: self._end - (1 if keep is not None else 0)]
                    await self.mount_all(
                        [view_of(turn, markdown=self._markdown) for turn in shown], before=keep if keep else None
                    )
                    await self._place_cut()
        self.release_anchor()
        self.scroll_home(animate=False)

    # ---- the reader's cursor --------------------------------------------------------------------------------------

    def _mark(self, turn: Turn | None) -> None:
        if self.marked is turn:
            return
        self.marked = turn
        for view in self.views:
            view.set_class(view.turn is turn, "-marked")
        self.post_message(self.Marked(turn))

    def on_focus(self) -> None:
        """Marks the last message."""
        if self.turns:
            self._mark(self.turns[-1])

    def on_blur(self) -> None:
        """The cursor goes with the focus."""
        self._mark(None)

    def unmark(self) -> None:
        """No message is marked, unless the keys are for the chat."""
        if not self.has_focus:
            self._mark(None)

    async def action_mark(self, step: int) -> None:
        """Marks the message before or after."""
        if not self.turns:
            return
        index = self.turns.index(self.marked) + step if self.marked in self.turns else len(self.turns) - 1
        await self._mark_index(min(max(index, 0), len(self.turns) - 1))

    async def action_mark_edge(self, direction: int) -> None:
        """Marks the first or the last message."""
        if self.turns:
            await self.to_edge(direction)
            await self._mark_index(0 if direction < 0 else len(self.turns) - 1)

    async def _mark_index(self, index: int) -> None:
        turn = self.turns[index]
        while index < self._start:
            await self.extend_up()
        while index >= self._end:
            await self._extend_down()
        self._mark(turn)
        view = self.view(turn)
        if view is not None:
            self.release_anchor()
            self.scroll_to_widget(view, animate=False, top=view.region.height > self.size.height)

    async def action_toggle_thinking(self) -> None:
        """Unfolds the thinking of the marked message, else of the last answer."""
        view = self.view(self.marked) if self.marked is not None else None
        if view is None:
            view = next((view for view in reversed(self.views) if isinstance(view, AnswerView)), None)
        if view is not None:
            await view.toggle_thinking()

    async def reveal(self, message_id: int) -> None:
        """Scrolls to a message of the path and marks it."""
        for index, turn in enumerate(self.turns):
            if turn.id == message_id:
                await self._mark_index(index)
                return
