"""The expert map on the whole screen: layers down, experts across, heat and residency, and a cursor that tells all."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content
from textual.screen import Screen

from flashmoe import figures
from flashmoe.monitor.expert_stats import Cells, ExpertArrays
from flashmoe.monitor.feed import MonitorFeed
from tui import keymap as keys
from tui.texts import joined
from tui.widgets.key_bar import KeyBar
from tui.widgets.monitor.budget_curve import MOST_ROWS, budget_curve
from tui.widgets.monitor.expert_map import layers_in_vram, legend, no_map, row_in_vram, row_of_cells, vram_layers
from tui.widgets.monitor.layer_rates import ALL, LEAST, LayerRates
from tui.widgets.monitor.lines import MUTED, RULE, Lines, fit, line, spread

_LABEL = 5
_WIDEST_CELL = 4
_LOOK_S = 1.0
_KEYS = ["experts.sort", "experts.hottest", "experts.curve", "experts.back"]


class ExpertMapView(Lines):
    """The map with a headline, row labels, per-layer rates and the cursor's details. `update_view` looks again."""

    DEFAULT_CSS = """
    ExpertMapView { height: 1fr; padding: 0 1; color: $foreground; background: $background; }
    """

    def __init__(self, feed: MonitorFeed, *, spare_rows: bool = True) -> None:
        """`spare_rows`: rows that the map leaves over show what each budget would hit."""
        super().__init__(id="expert-map")
        self._spare_rows = spare_rows
        self.feed = feed
        self.row = 0
        self.column = 0
        self.by_use = False
        self.with_curve = False
        """Whether the map gives rows to the budget's curve; where rows are left over it is drawn anyway."""
        self._map_key: tuple[object, ...] = ()
        self._map_lines: list[Content] = []

    # ---- the cursor ------------------------------------------------------------------------------------------------

    def move(self, rows: int, columns: int) -> None:
        """Moves the cursor by layers and experts (columns, where the order is by use)."""
        arrays = self.feed.arrays
        if arrays is not None:
            self.row = min(max(0, self.row + rows), arrays.rows - 1)
            self.column = min(max(0, self.column + columns), arrays.columns - 1)
            self.update_view()

    def toggle_order(self) -> None:
        """Experts by number, or each layer's most used first; the cursor stays on its expert."""
        arrays = self.feed.arrays
        if arrays is not None:
            expert = self.expert(arrays)
            self.by_use = not self.by_use
            order = arrays.order[self.row]
            self.column = int((order == expert).argmax()) if self.by_use else expert
        self.update_view()

    def to_hottest_miss(self) -> bool:
        """To the hottest expert that is on SSD; False where there is none."""
        arrays = self.feed.arrays
        found = arrays.hottest_miss() if arrays is not None else None
        if arrays is None or found is None:
            return False
        self.row, expert = found
        self.column = int((arrays.order[self.row] == expert).argmax()) if self.by_use else expert
        self.update_view()
        return True

    def expert(self, arrays: ExpertArrays) -> int:
        """The number of the expert under the cursor."""
        column = min(self.column, arrays.columns - 1)
        return int(arrays.order[min(self.row, arrays.rows - 1), column]) if self.by_use else column

    # ---- drawing ---------------------------------------------------------------------------------------------------

    def make_lines(self, width: int, height: int) -> list[Content]:
        """Headline, map, cursor's details, legend."""
        arrays = self.feed.arrays
        if arrays is None:
            return [self._headline(width, None, None), Content(""), fit(line((no_map(self.feed), MUTED)), width)]
        self.row, self.column = min(self.row, arrays.rows - 1), min(self.column, arrays.columns - 1)
        room = max(1, height - 7 - (MOST_ROWS + 1 if self.with_curve and height >= 24 else 0))
        key = (arrays, self.feed.model, width, room, self.row, self.column, self.by_use)
        if key != self._map_key:  # a map comes every two seconds, a look at the figures under it twice a second
            self._map_key, self._map_lines = key, self._map(arrays, width, room)
        lines = [*self._map_lines, *self._details(arrays, width)]
        if not self._spare_rows:
            return lines
        curve = budget_curve(self.feed, width, height - len(lines) - 2)  # where the model has few layers
        return [*lines, line(("─" * width, RULE)), *(fit(each, width) for each in curve)] if curve else lines

    def _map(self, arrays: ExpertArrays, width: int, room: int) -> list[Content]:
        """Headline, numbers, a line for each row of cells, and a rule."""
        least = LEAST if width >= 100 and arrays.residency is not None else 0
        across = width - _LABEL - least
        cells = Cells(arrays, room, across, by_use=self.by_use)
        # two columns make a cell square; wider only where the rates have all their columns
        roomy = (width - _LABEL - ALL) // cells.columns
        wide = max(1, min(2, across // cells.columns), min(_WIDEST_CELL, roomy))
        across = _LABEL + cells.columns * wide
        rates = LayerRates(arrays, width - across)
        lines = [self._headline(width, arrays, cells)]
        under, at = self.row // cells.per_row, self.column // cells.per_column
        ruler = line(" " * _LABEL, self._ruler(cells, at, wide))
        lines.append(line(fit(ruler, across), rates.title()))
        row_of = {arrays.layers[row * cells.per_row]: row for row in range(cells.rows)}
        in_vram = set(vram_layers(self.feed))
        if cells.per_row > 1 or len(in_vram | row_of.keys()) > room:
            in_vram.clear()  # the legend names them
        for layer in sorted(in_vram | row_of.keys()):
            row = row_of.get(layer)
            style = "bold $primary" if row == under else MUTED
            label = line((f"{layer:>{_LABEL - 2}}", style), (" │", RULE))
            if row is None or layer in in_vram:
                lines.append(line(label, row_in_vram(cells.columns * wide, named=layer - 1 not in in_vram)))
                continue
            body = row_of_cells(cells, row, at if row == under else None, wide)
            lines.append(line(label, body, rates.row(row * cells.per_row, cells.per_row)))
        lines.append(line(("─" * width, RULE)))
        return [fit(content, width) for content in lines]

    def _headline(self, width: int, arrays: ExpertArrays | None, cells: Cells | None) -> Content:
        model = self.feed.model
        name = f" {model.name}" if model is not None else ""
        left = line(("experts", "bold $primary"), (name, "bold"))
        if arrays is None or cells is None:
            return fit(left, width)
        order = "most used first" if self.by_use else "by number"
        resident = arrays.resident_share()
        layers = {*arrays.layers, *vram_layers(self.feed)}
        in_vram = len(vram_layers(self.feed))
        of = " of the others" if len(layers) > arrays.rows else ""
        held = f" · {figures.percent(resident).strip()}{of} in RAM" if resident is not None else ""
        there = f" · {in_vram} {'layers' if in_vram > 1 else 'layer'} in VRAM" if in_vram else ""
        held = there + held
        shape = f"{len(layers)} × {arrays.columns}"
        for words in (
            f"{shape}, {order}{held} · {cells.scale}",
            f"{shape}{held} · {cells.scale}",
            f"{shape}{there} · {cells.scale}",
            cells.scale,
        ):
            if left.cell_length + len(words) + 2 <= width or words == cells.scale:
                break
        return spread(left, line((words, MUTED)), width)

    def _ruler(self, cells: Cells, at: int, wide: int) -> Content:
        """Numbers of the experts over the map, and where the cursor is."""
        length = cells.columns * wide
        marks = [" "] * length
        step = 16 if cells.per_column == 1 else 10
        for cell in range(0, cells.columns, step):
            for offset, char in enumerate(str(cell * cells.per_column)):
                if cell * wide + offset < length:
                    marks[cell * wide + offset] = char
        before, after = "".join(marks[: at * wide]), "".join(marks[(at + 1) * wide :])
        return line((before, MUTED), ("▼".ljust(wide), "bold $primary"), (after, MUTED))

    def _details(self, arrays: ExpertArrays, width: int) -> list[Content]:
        row, expert = self.row, self.expert(arrays)
        where = line(
            ("layer ", MUTED), (f"{arrays.layers[row]:<3}", "bold"), ("expert ", MUTED), (f"{expert:<4}", "bold")
        )
        facts: list[str] = []
        if arrays.residency is not None:
            resident = float(arrays.residency[row, expert]) / 255
            facts.append(
                "in RAM" if resident > 0.995 else "on SSD" if resident < 0.005 else f"{resident * 100:.0f} % in RAM"
            )
        if arrays.uses is not None:
            share = arrays.uses_share(row, expert)
            of = " of the layer" if width >= 100 else ""
            part = f" ({share * 100:.1f} %{of})" if share is not None else ""
            facts.append(f"used {int(arrays.uses[row, expert]):,}×{part}")
        if arrays.last_used is not None:
            last = int(arrays.last_used[row, expert])
            ago = (arrays.token or 0) - last
            tokens = f"{ago:,} token{'s' if ago > 1 else ''} ago"
            facts.append("never used" if not last else "just now" if not ago else tokens)
        if arrays.expert_bytes[row]:
            facts.append(figures.size(arrays.expert_bytes[row]))
        said = "  # is hot but on SSD: read again and again" if width >= 92 else "  # hot but on SSD"
        return [
            fit(line(where, " ", joined(facts, width - where.cell_length - 1)), width),
            fit(line((f"this layer  {self._skew(arrays, row, width)}", MUTED)), width),
            fit(line((f"all layers  {self._skew(arrays, None, width)}", MUTED)), width),
            fit(
                line(legend(), (f"  {layers_in_vram(self.feed)}" if layers_in_vram(self.feed) else said, MUTED)), width
            ),
        ]

    def _skew(self, arrays: ExpertArrays, row: int | None, width: int) -> str:
        parts = []
        half, most = arrays.experts_for(0.5, row), arrays.experts_for(0.9, row)
        if half is not None and most is not None:
            words = (
                "{:.0f} experts make 50 % of the uses, {:.0f} make 90 %"
                if width >= 100
                else "{:.0f} make 50 % of uses, {:.0f} make 90 %"
            )
            parts.append(words.format(half, most))
        decode = self.feed.frame.decode if self.feed.frame is not None else None
        rate = arrays.hit_rate(row) if row is not None else decode.hit_rate if decode is not None else None
        if rate is not None:
            parts.append(f"hit {figures.percent(rate).strip()}")
        reuse = None
        if row is not None and arrays.next_token_reuse is not None:
            value = float(arrays.next_token_reuse[row])
            reuse = value if value == value else None
        elif row is None and self.feed.frame is not None:
            reuse = self.feed.frame.next_token_reuse
        if reuse is not None:
            again = figures.percent(reuse).strip()
            parts.append(f"{again} used again by the next token" if width >= 100 else f"reuse {again}")
        return joined(parts, width - 12) or "this backend doesn't see which experts are used"


class ExpertsScreen(Screen[None]):
    """The map over a feed that somebody else fills."""

    BINDINGS = keys.bindings("experts")

    def __init__(self, feed: MonitorFeed) -> None:
        super().__init__()
        self._feed = feed

    def compose(self) -> ComposeResult:
        """The map, and the keys."""
        yield ExpertMapView(self._feed)
        yield KeyBar(self.app.keymap, _KEYS)  # type: ignore[attr-defined]

    def on_mount(self) -> None:
        """Looks at the feed once a second; only lines that changed are painted."""
        self.set_interval(_LOOK_S, self.view.update_view)

    @property
    def view(self) -> ExpertMapView:
        """The map."""
        return self.query_one(ExpertMapView)

    def action_move(self, rows: int, columns: int) -> None:
        """Moves the cursor."""
        self.view.move(rows, columns)

    def action_sort(self) -> None:
        """The other order."""
        self.view.toggle_order()

    def action_curve(self) -> None:
        """The budget's curve under the map, or not."""
        self.view.with_curve = not self.view.with_curve
        self.view.update_view()

    def action_hottest(self) -> None:
        """To the hottest expert on SSD."""
        if not self.view.to_hottest_miss():
            self.notify("Every expert that was used is in memory.")

    def action_back(self) -> None:
        """Closes the map."""
        self.dismiss(None)
