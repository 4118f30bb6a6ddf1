"""Keys and pastes take effect in the order in which they came, one after the other.

Textual gives a key to the focused widget's queue, and what the widget doesn't want climbs from queue to queue up to the
app, which then looks for a binding: a letter that is typed after an arrow key overtakes it, and a key with priority
overtakes both. Here a text field takes its keys at once, and a key that is still on its way, or opens a screen, keeps
those behind it waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from textual import events
from textual.app import App
from textual.dom import DOMNode
from textual.message_pump import MessagePump
from textual.widget import Widget
from textual.widgets import Input, TextArea

from tui.terminal.bursts import TextOfKeys
from tui.terminal.escapes import AltKey

LONGEST_HOLD_S = 3.0
"""What takes longer than this to open a screen no longer keeps keys waiting."""
_LEAVING = frozenset({"submit", "send", "editor", "history"})
"""Actions of a field that others act on: what is typed behind them waits until they have."""
_OF_WORDS = frozenset({"cursor_word_left", "cursor_word_right", "kill_word_ahead", "kill_letters"})
"""Actions that have no use in a field that is empty."""


class KeyOrder(App[int]):
    """An app whose keys and pastes are handled in order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._typed: deque[events.Key | events.Paste] = deque()
        self._on_its_way: asyncio.Task[None] | None = None
        self._holds: set[asyncio.Event] = set()
        self.leaders: frozenset[str] = frozenset()
        """Keys that begin a binding of two, as ``ctrl+x`` in ``ctrl+x n``."""
        self._led_by = ""
        self.n_keys = 0
        """Keys, pastes and clicks so far."""

    def leader_changed(self, leader: str, missed: str = "") -> None:
        """`leader` was pressed and the second key is awaited; empty: it has come. `missed`: it means nothing."""

    # ---- what keeps keys waiting ----------------------------------------------------------------------------------

    def hold_keys(self) -> Callable[[], None]:
        """Keys wait until what is returned is called, a dialog asks, or `LONGEST_HOLD_S` have passed.

        For an action that will open a screen, or empty the field, after it has waited for something.
        """
        released = asyncio.Event()
        self._holds.add(released)

        def release() -> None:
            released.set()
            self._holds.discard(released)

        return release

    def release_keys(self) -> None:
        """A screen that was to come is there."""
        for released in list(self._holds):
            released.set()
        self._holds.clear()

    # ---- one after the other --------------------------------------------------------------------------------------

    async def on_event(self, event: events.Event) -> None:
        """Keys and pastes from the terminal; everything else as ever."""
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            self.n_keys += isinstance(event, events.MouseDown)
            await super().on_event(event)
        elif self._on_its_way is not None or self._typed or self._holds or not self._takes_keys():
            self._typed.append(event)
            if self._on_its_way is None:
                self._on_its_way = asyncio.create_task(self._go_on([]))
        else:
            nodes = await self._take(event)
            if nodes is not None or self._typed:
                self._on_its_way = asyncio.create_task(self._go_on(nodes or []))

    def _takes_keys(self) -> bool:
        """Whether the screen on top can be typed to."""
        return bool(self._screen_stack) and self.screen.is_running and self.screen.is_mounted

    async def _go_on(self, nodes: list[MessagePump]) -> None:
        """Waits for the key that is on its way, then handles those behind it."""
        try:
            await self._arrived(nodes)
            while self._typed:
                further = await self._take(self._typed.popleft())
                if further is not None:
                    await self._arrived(further)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # as Textual does with what a handler raises
            self._handle_exception(error)
        finally:
            self._on_its_way = None

    async def _arrived(self, nodes: list[MessagePump]) -> None:
        """Every queue of `nodes` has handled what stood in it, nothing is held, and the top screen can be typed to."""
        for node in nodes:
            await _handled(node)
        for released in list(self._holds):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(released.wait(), LONGEST_HOLD_S)
            self._holds.discard(released)
        end = time.monotonic() + LONGEST_HOLD_S
        # Textual tells nobody that a screen is there.
        while not self._takes_keys() and self._running and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if self._takes_keys():
            await _handled(self.screen)  # with its resumption, which gives the focus

    async def _take(self, event: events.Key | events.Paste) -> list[MessagePump] | None:
        """Handles one; returns the queues that it has to pass yet, None where it is done with."""
        self.n_keys += 1
        self.screen._clear_tooltip()
        field = self.focused
        is_field = isinstance(field, Input | TextArea)
        if isinstance(event, TextOfKeys):
            if is_field and not self._led_by:
                event = events.Paste(event.text)
            else:
                self._typed.extendleft(reversed(event.keys))
                return None
        if isinstance(event, events.Paste):
            self._led(None)
            if field is not None and is_field:
                await _give(field, event)
                return None
            target = field or self.screen
            target._forward_event(event)
            return _up_from(target)
        if self.screen.maximized is not None and event.key == "escape" and self.escape_to_minimize:
            self.screen.minimize()
            return None
        if not self.app_focus:
            self.app_focus = True
        if isinstance(event, AltKey) and self._is_two(event, field):
            self._typed.extendleft(reversed(event.two))
            return None
        grab = getattr(field, "grab_key", None)
        if grab is not None and not self._led_by and grab(event):
            return None
        if self._led_by or event.key in self.leaders:
            return await self._lead(event)
        ran = await self._run_binding(event.key, priority=True)
        if ran is None and field is not None and is_field:
            await _give(field, event)
            if event._stop_propagation:
                return None
            ran = await self._run_binding(event.key, priority=False)
            if ran is None:
                return None
        if ran is not None:
            node, action = ran
            if node is field and is_field and action not in _LEAVING:
                return None
            return _up_from(field or self.screen)
        target = field or self.screen
        target._forward_event(event)
        return _up_from(target)

    def _led(self, leader: str | None, missed: str = "") -> None:
        if leader or self._led_by:
            self._led_by = leader or ""
            self.leader_changed(self._led_by, missed)

    async def _lead(self, event: events.Key) -> list[MessagePump] | None:
        """A leader, or the key behind it."""
        if not self._led_by:
            self._led(event.key)
            return None
        keys = f"{self._led_by} {event.key}"
        for priority in (True, False):
            if await self._run_binding(keys, priority=priority) is not None:
                self._led(None)
                return _up_from(self.focused or self.screen)
        self._led(None, "" if event.key in ("escape", self._led_by) else keys)
        return None

    def _is_two(self, event: AltKey, field: Widget | None) -> bool:
        """Whether Esc and what follows in the same piece are two keys: together they mean nothing here."""
        text = field.text if isinstance(field, TextArea) else field.value if isinstance(field, Input) else None
        for _, bindings in self.screen._modal_binding_chain:
            for binding in bindings.key_to_bindings.get(event.key, ()):
                if text != "" or binding.action.partition("(")[0] not in _OF_WORDS:
                    return False
        return True

    async def _run_binding(self, key: str, *, priority: bool) -> tuple[DOMNode, str] | None:
        """As `App._check_bindings`, but says whose action ran."""
        chain = reversed(self.screen._binding_chain) if priority else self.screen._modal_binding_chain
        for node, bindings in list(chain):
            for binding in bindings.key_to_bindings.get(key, ()):
                if binding.priority == priority and await self.run_action(binding.action, node):
                    return node, binding.action.partition("(")[0]
        return None


async def _give(field: Widget, event: events.Event) -> None:
    """The field handles it now, as if it came from its queue; it doesn't climb."""
    event._set_forwarded()
    event.bubble = False  # type: ignore[misc]  # of this one event
    with field._context():
        await field._dispatch_message(event)


def _up_from(node: DOMNode) -> list[MessagePump]:
    """The queues that an unwanted key passes, from the focused widget up to the app."""
    return list(node.ancestors_with_self)


async def _handled(node: MessagePump) -> None:
    """All that stands in the queue of `node` is handled; at once where it is gone."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def arrived() -> None:
        if not done.done():
            done.set_result(None)

    if not node.is_running or not node.call_later(arrived):
        return
    while not done.done() and node.is_running and not node._closing:
        await asyncio.wait([done], timeout=0.05)
