"""Makes a theme's colours readable in the colours that the terminal has.

Text reaches a contrast of 4.5:1 on every background that it may stand on, the selected row among them; borders and
other decoration 3:1 (WCAG 2). A colour that doesn't is moved towards white or black; on terminals of 256 or 16 colours
the nearest one of theirs that does is taken, rather than left to be rounded. Without colours everything has the
terminal's own two, and what is selected is reversed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rich.color import Color as RichColor
from rich.color import ColorSystem
from textual.color import Color, Lab, rgb_to_lab
from textual.theme import BUILTIN_THEMES, Theme

TEXT = 4.5
DECORATION = 3.0
_TEXTS = ("foreground", "primary", "secondary", "accent", "warning", "error", "success")
_DERIVED = ("foreground-muted", "text-muted", "text-disabled", "text-primary", "text-secondary", "text-accent",
            "text-warning", "text-error", "text-success", "footer-key-foreground")  # fmt: skip
_BORDERS = ("border", "border-blurred", "scrollbar", "scrollbar-hover", "scrollbar-active")
_SELECTIONS = ("input-selection-background", "screen-selection-background")
_SCROLLBAR_BACKS = ("scrollbar-background", "scrollbar-background-hover", "scrollbar-background-active")
_BACKGROUNDS = ("background", "surface", "panel")
COLOURFUL = 12
"""Chroma (Lab) from which on a colour is no shade of grey."""
FOCUSED = 0.05
"""How much of the foreground Textual adds to the background of a field that has the focus."""
SELECTED = 0.16
"""How much of the primary colour a selected row has."""


@lru_cache(maxsize=8192)
def luminance(colour: Color) -> float:
    """Relative luminance, 0 to 1."""

    def linear(part: int) -> float:
        value = part / 255
        return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(colour.r) + 0.7152 * linear(colour.g) + 0.0722 * linear(colour.b)


def contrast(one: Color, other: Color) -> float:
    """The ratio of two opaque colours, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@lru_cache(maxsize=4)
def palette(mode: str) -> tuple[Color, ...]:
    """The colours of a terminal of ``256`` or ``16`` that come out as they are when Rich rounds to them."""
    system = ColorSystem.EIGHT_BIT if mode == "256" else ColorSystem.STANDARD
    numbers = range(16, 256) if mode == "256" else range(16)
    found: list[Color] = []
    for number in numbers:
        triplet = RichColor.from_ansi(number).get_truecolor()
        rounded = RichColor.from_triplet(triplet).downgrade(system)
        if rounded.get_truecolor() == triplet:
            found.append(Color(*triplet))
    return tuple(found)


def fitted(colour: Color, backs: Sequence[Color], need: float, mode: str) -> Color:
    """The colour nearest to `colour` that has the contrast `need` on all of `backs`; else the best there is."""
    if mode in ("256", "16"):
        able = [c for c in palette(mode) if all(contrast(c, back) >= need for back in backs)]
        if able:
            return min(able, key=lambda c: _distance(c, colour, mode))
        return max(palette(mode), key=lambda c: min(contrast(c, back) for back in backs))
    light = Color(255, 255, 255) if luminance(backs[0]) < 0.18 else Color(0, 0, 0)
    for step in range(101):
        moved = colour.blend(light, step / 100, alpha=1)
        if all(contrast(moved, back) >= need for back in backs):
            return moved
    return light


def fit(theme: Theme, mode: str) -> Theme:
    """`theme` for terminals of these colours (``truecolor``, ``256``, ``16``, ``none``). One of the terminal's own
    sixteen stays: nobody knows what they are."""
    if mode == "none":
        return plain(theme)
    if theme.ansi:
        return theme
    made = theme.to_color_system().generate()
    backs = {name: _near(_parse(made[name], Color(0, 0, 0)), mode) for name in _BACKGROUNDS}
    if mode == "16":
        backs = dict.fromkeys(_BACKGROUNDS, backs["background"])
    base = backs["background"]
    primary = _parse(made["primary"], base)
    selected = _selected(backs, primary, _near(_parse(made["foreground"], base), mode), mode)
    stands_on = [*backs.values(), selected]
    tint = _parse(made["foreground"], base)
    fields = [_near(backs[name].blend(tint, FOCUSED, alpha=1), mode) for name in ("surface", "panel")]
    colours = {name: fitted(_parse(made[name], base), stands_on, TEXT, mode) for name in _TEXTS}
    variables = {**theme.variables, "selected": selected.hex}
    for name in _DERIVED:
        under = [*stands_on, *fields] if name == "text-disabled" else stands_on  # what stands in an empty field
        variables[name] = fitted(_parse(made.get(name, made["foreground"]), base), under, TEXT, mode).hex
    for name in _BORDERS:
        variables[name] = fitted(_parse(made[name], base), list(backs.values()), DECORATION, mode).hex
    variables |= dict.fromkeys(_SCROLLBAR_BACKS, base.hex)
    text = colours["foreground"]
    for name in _SELECTIONS:
        variables[name] = _behind_text(_parse(made[name], base), text, list(backs.values()), mode).hex
    variables |= {"input-selection-foreground": text.hex, "screen-selection-foreground": text.hex}
    cursor = _near(_parse(made["block-cursor-background"], base), mode)
    variables["block-cursor-background"] = cursor.hex
    variables["block-cursor-foreground"] = fitted(
        _parse(made["block-cursor-foreground"], base), [cursor], TEXT, mode
    ).hex
    return Theme(
        name=theme.name,
        dark=theme.dark,
        variables=variables,
        boost=theme.boost,
        luminosity_spread=theme.luminosity_spread,
        text_alpha=theme.text_alpha,
        **{name: colour.hex for name, colour in (colours | backs).items()},  # type: ignore[arg-type]
    )


def plain(theme: Theme) -> Theme:
    """A theme in the terminal's own two colours."""
    colours = dict.fromkeys([*_TEXTS, *_BACKGROUNDS, "boost"], "ansi_default")
    made = BUILTIN_THEMES["ansi-dark"].to_color_system().generate()
    variables = {name: "ansi_default" for name, value in made.items() if "ansi_" in value}
    variables |= dict.fromkeys([*_DERIVED, *_BORDERS, *_SCROLLBAR_BACKS, "selected"], "ansi_default")
    variables["input-cursor-text-style"] = "reverse"
    return Theme(name=theme.name, dark=theme.dark, ansi=True, variables=variables, **colours)  # type: ignore[arg-type]


def _behind_text(wanted: Color, text: Color, others: Sequence[Color], mode: str) -> Color:
    """The background nearest to `wanted` that `text` can be read on and that is none of `others`."""
    if mode in ("256", "16"):
        able = [c for c in palette(mode) if c not in others and contrast(c, text) >= TEXT]
        return min(able, key=lambda c: _distance(c, wanted, mode)) if able else _near(wanted, mode)
    return next(
        (c for n in range(101) if contrast(c := wanted.blend(others[0], n / 100, alpha=1), text) >= TEXT), wanted
    )


def _selected(backs: Mapping[str, Color], primary: Color, foreground: Color, mode: str) -> Color:
    """The background of a selected row: the surface with a breath of the primary colour; of a palette the nearest that
    is none of the others and on which the foreground can be read well."""
    wanted = backs["surface"].blend(primary, SELECTED, alpha=1)
    if mode not in ("256", "16"):
        return wanted
    able = [c for c in palette(mode) if c not in backs.values() and contrast(c, foreground) >= 7]
    return min(able, key=lambda c: _distance(c, wanted, mode)) if able else _near(wanted, mode)


def _near(colour: Color, mode: str) -> Color:
    if mode not in ("256", "16"):
        return colour
    return min(palette(mode), key=lambda c: _distance(c, colour, mode))


def _distance(one: Color, other: Color, mode: str) -> float:
    """How different two colours look. A grey that turns green is worse than one that is a little lighter; of sixteen
    colours one of the same hue is nearest, or nothing but grey would be left."""
    a, b = _lab(one), _lab(other)
    if mode == "16" and math.hypot(b.a, b.b) > COLOURFUL:
        turned = abs(math.atan2(a.b, a.a) - math.atan2(b.b, b.a))
        grey = 0.0 if math.hypot(a.a, a.b) > COLOURFUL else math.pi
        return 1000 * (min(turned, 2 * math.pi - turned) + grey) + abs(a.L - b.L)
    return (a.L - b.L) ** 2 + 3 * ((a.a - b.a) ** 2 + (a.b - b.b) ** 2)


@lru_cache(maxsize=1024)
def _lab(colour: Color) -> Lab:
    return rgb_to_lab(colour)


def _parse(value: str, back: Color) -> Color:
    """A variable as Textual makes it: a colour, perhaps with an opacity, or ``auto 60%``."""
    name, _, opacity = value.partition(" ")
    share = float(opacity.rstrip("%")) / 100 if opacity else 1.0
    if name == "auto":
        return back.blend(back.get_contrast_text(1.0), share, alpha=1)
    colour = Color.parse(name)
    return back.blend(colour, share * colour.a, alpha=1)


__all__ = ["DECORATION", "TEXT", "contrast", "fit", "fitted", "luminance", "palette", "plain"]
