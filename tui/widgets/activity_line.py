"""One line over the composer: what is going on now, with its figures. Nobody may wonder whether it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from backends.interface import LoadProgress, PrefillProgress
from flashmoe import figures
from flashmoe.text_safety import visible_line

MUTED = "$foreground-muted"
READ_S = 3.0
"""Seconds for which the figures of an answer don't replace a warning: long enough to read why a key did nothing."""

SILENT_S = 3.0
"""Without a time left to tell, the time so far is shown from then on."""

LEAST_BAR = 8


class ActivityLine(Widget):
    """Loading, reading the prompt, answering, or the last sentence that the user should read."""

    DEFAULT_CSS = """
    ActivityLine { height: auto; max-height: 4; min-height: 1; padding: 0 2; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__(id="activity")
        self._content = Content()
        self._prefill_start: tuple[float, int] | None = None
        self._read_until = 0.0
        self._waiting: Timer | None = None
        """Counts the seconds that a server takes; what else is shown ends it."""

    def render(self) -> Content:
        """The line as it was set last."""
        return self._content

    def _set(self, content: Content, waiting: Timer | None = None) -> None:
        self._waiting = waiting
        if content.plain != self._content.plain or content.spans != self._content.spans:
            taller = len(content.plain) > self.size.width - 4 or len(self._content.plain) > self.size.width - 4
            self._content = content
            self.refresh(layout=taller)

    @property
    def text(self) -> str:
        """What the line says."""
        return self._content.plain

    def clear(self) -> None:
        """Nothing is going on."""
        self._set(Content())

    def done(self) -> None:
        """What was going on ended; why something was refused meanwhile can still be read."""
        left, content = self._read_until - time.monotonic(), self._content
        if left <= 0:
            self.clear()
        else:
            self.set_timer(left, lambda: self.clear() if self._content is content else None)

    def say(self, sentence: str, level: str = "info", *, seconds: float | None = None) -> Callable[[], None]:
        """A sentence that stays until something else happens, or for so many seconds. Levels: info, warning, error.

        What is returned takes it away, where it is still there."""
        mark, style = {"error": ("✗ ", "$text-error"), "warning": ("! ", "$text-warning")}.get(level, ("", MUTED))
        self._set(Content.styled(mark + visible_line(sentence, 400), style))
        self._read_until = time.monotonic() + (READ_S if level == "warning" else 0.0)
        content = self._content

        def forget() -> None:
            if self._content is content:
                self.clear()

        if seconds is not None:
            self.set_timer(seconds, forget)
        return forget

    def show_loading(self, name: str, progress: LoadProgress | None, cancel_key: str) -> None:
        """A model is being loaded."""
        parts: list[Content | str | tuple[str, str]] = [
            ("Loading ", MUTED),
            (visible_line(name, 40), "bold"),
        ]
        if progress is not None:
            if progress.total_bytes:
                share = progress.done_bytes / progress.total_bytes
                parts += [
                    "  ",
                    (figures.bar(share, self._bar_width()), "$primary"),
                    f"  {figures.size(progress.done_bytes)} of {figures.size(progress.total_bytes)}",
                ]
            if progress.stage:
                parts += [(f"  {visible_line(progress.stage, 60)}", MUTED)]
        if cancel_key:
            parts += [(f"  {cancel_key} cancels", MUTED)]
        self._set(Content.assemble(*parts))

    def show_prefill(self, progress: PrefillProgress, now: float, stop_key: str) -> None:
        """The prompt is being read: tokens done, total, and the time left once it can be known. Without a total (a
        server doesn't tell): how long it has been waited for."""
        if not progress.total:
            self._wait(now, stop_key)
            return
        begun = self._prefill_start
        if begun is None or progress.done < begun[1] or begun[1] < progress.done <= progress.reused:
            self._prefill_start = (now, progress.done)
        started, first = self._prefill_start or (now, progress.done)
        total = max(progress.total, 1)
        eta = ""
        if progress.done > first and now - started > 0.5 and progress.done < total:
            left = progress.eta_s
            if left is None:
                left = (total - progress.done) * (now - started) / (progress.done - first)
            eta = f"  about {figures.duration(left)} left"
        elif now - started >= SILENT_S:  # a first layer takes seconds where the disk is slow: it isn't stuck
            eta = f"  {figures.duration(now - started)} so far"
        reused = f" ({progress.reused:,} cached)" if progress.reused else ""
        what, tokens, stop = "Reading the prompt  ", f"  {progress.done:,} of {total:,} tokens", f"  {stop_key} stops"
        room = self.size.width - len(what + tokens + reused + eta)  # one line, or what is below it jumps
        if not stop_key or room < LEAST_BAR + len(stop):
            stop = ""
        width = max(LEAST_BAR, min(self._bar_width(), room - len(stop)))
        self._set(
            Content.assemble(
                (what, MUTED),
                (figures.bar(progress.done / total, width), "$primary"),
                tokens,
                (reused + eta, MUTED),
                (stop, MUTED),
            )
        )

    def _wait(self, since: float, stop_key: str) -> None:
        def tick() -> None:
            if self._waiting is not timer:
                timer.stop()
                return
            self._set(Content.styled(said(), MUTED), timer)

        def said() -> str:
            waited = f"  {figures.duration(time.monotonic() - since)}" if time.monotonic() - since >= 1 else ""
            return f"Waiting for the first word{waited}" + (f"  {stop_key} stops" if stop_key else "")

        timer = self.set_interval(1.0, tick)
        self._set(Content.styled(said(), MUTED), timer)

    def show_summarising(self, n_turns: int, prefill: PrefillProgress | None, tokens: int, stop_key: str) -> None:
        """A summary of so many messages is being made: what of them has been read, then what has been written."""
        parts: list[Content | str | tuple[str, str]] = [(f"Summarising {n_turns} messages", MUTED)]
        if prefill is not None and prefill.done < prefill.total:
            share = prefill.done / max(prefill.total, 1)
            parts += ["  ", (figures.bar(share, self._bar_width()), "$primary")]
            parts.append(f"  {prefill.done:,} of {prefill.total:,} tokens read")
        elif tokens:
            parts.append(f"  {tokens:,} tokens")
        self._set(Content.assemble(*parts, (f"  {stop_key} stops" if stop_key else "", MUTED)))

    def show_waiting(self, text: str) -> None:
        """Something was asked and hasn't begun."""
        self._prefill_start = None
        self._set(Content.styled(text, MUTED))

    def show_answering(self, n_tokens: int, seconds: float, stop_key: str, thinking: bool) -> None:
        """Text is coming."""
        self._prefill_start = None
        if time.monotonic() < self._read_until:
            return
        what = "Thinking" if thinking else "Answering"
        stop = f"  {stop_key} stops" if stop_key else ""
        spent = figures.duration(seconds) if seconds >= 10 else f"{seconds:.0f} s"  # it moves once a second
        tokens = f"{n_tokens:,} token{'s' if n_tokens != 1 else ''}"
        self._set(Content.styled(f"{what}  {tokens} in {spent}{stop}", MUTED))

    def _bar_width(self) -> int:
        return 10 if self.size.width < 70 else 16 if self.size.width < 100 else 24
