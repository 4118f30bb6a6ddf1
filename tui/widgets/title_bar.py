"""The first line: program, model, how it runs, the context, the rate. What doesn't fit goes, least important first."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from backends.interface import ModelInfo
from flashmoe import figures
from flashmoe.remote.address import host_of
from flashmoe.text_safety import visible_line
from tui.texts import fitting


class TitleBar(Widget):
    """One line. It holds only what it shows; the screen sets it."""

    DEFAULT_CSS = """
    TitleBar { height: 1; background: $panel; color: $foreground; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__(id="title-bar")
        self._model: ModelInfo | None = None
        self._note = "no model"
        self._ctx_used = 0
        self._tok_s: float | None = None
        self._writing: str | None = None

    def show_model(self, model: ModelInfo | None, note: str = "no model") -> None:
        """The loaded model, or for None a few words about why there is none."""
        self._model, self._note = model, note
        if model is None:
            self._tok_s, self._ctx_used = None, 0
        self.refresh()

    def show_context(self, used: int) -> None:
        """Tokens of the context in use."""
        if used != self._ctx_used:
            self._ctx_used = used
            self.refresh()

    def show_writing(self, title: str | None) -> None:
        """The chat that is being answered while another is shown; None: none is."""
        if title != self._writing:
            self._writing = title
            self.refresh()

    def show_rate(self, tok_s: float | None) -> None:
        """Tokens a second now; None: nothing runs."""
        if figures.speed(tok_s) != figures.speed(self._tok_s):
            self._tok_s = tok_s
            self.refresh()

    def render(self) -> Content:
        """Lays the parts out from the left, the rate at the right."""
        width = self.size.width
        right = Content.styled(f"{figures.speed(self._tok_s)} tok/s", "bold") if self._tok_s is not None else Content()
        if self._writing is not None:
            where = fitting(self._writing, 24 if width >= 100 else 14)
            right = Content.assemble(("✎ ", "bold $primary"), f"{where}  ", right)
        brand = Content.styled("flashmoe", "bold $primary")
        model = self._model
        if model is None:
            left = Content.assemble(brand, "   ", Content.styled(self._note, "$foreground-muted"))
            return _spread(left, right, width)
        room = width - 4
        for detail in range(5, -1, -1):
            name = visible_line(model.name, max(12, room - 40) if detail else max(8, room - right.cell_length - 12))
            left = Content.assemble(brand if detail else Content(), "   " if detail else "", *self._parts(name, detail))
            if left.cell_length + right.cell_length + 2 <= width or detail == 0:
                break
        return _spread(left, right, width)

    def _parts(self, name: str, detail: int) -> list[Content | str | tuple[str, str]]:
        model = self._model
        assert model is not None
        dot = (" · ", "$foreground-muted")
        parts: list[Content | str | tuple[str, str]] = [Content.styled(name, "bold")]
        if model.lossy:
            parts += [" ", ("≈ lossy" if detail >= 1 else "≈", "bold $warning")]
        if model.quant not in ("", "unknown") and detail >= 1:
            parts += [dot, visible_line(model.quant, 16)]
        if detail >= 3:
            parts += [dot, self._how(detail)]
        if model.n_ctx:
            share = self._ctx_used / model.n_ctx
            style = "$error" if share > 0.95 else "$warning" if share > 0.8 else "$foreground-muted"
            used = "-" if model.backend == "remote" and not self._ctx_used else figures.count(self._ctx_used)
            text = f"{used}/{figures.count(model.n_ctx)} ctx"
            if detail >= 2:
                parts += [dot, (text, style)]
            if detail >= 4:
                parts += [" ", (figures.bar(share, 8), style)]
        return parts

    def _how(self, detail: int) -> str:
        model = self._model
        assert model is not None
        words = [visible_line(model.backend, 16)]
        if model.store and detail >= 5:
            words.append({"pagecache": "page cache"}.get(model.store, model.store))
        if model.budget_bytes:
            words.append(figures.size(model.budget_bytes))
        if model.backend == "remote":
            words.append(visible_line(host_of(model.path), 32))
        elif not model.n_experts:
            words.append("dense")
        return " ".join(words)


def _spread(left: Content, right: Content, width: int) -> Content:
    gap = max(1, width - left.cell_length - right.cell_length)
    return Content.assemble(left, " " * gap, right)
