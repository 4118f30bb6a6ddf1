"""Frames of the app (Textual's SVG) as one SVG that moves: each element is kept once, with the times when it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator

_STYLE = re.compile(r"\.terminal-\d+-(r\d+) \{([^}]*)\}")
_ELEMENT = re.compile(r"<rect fill=[^>]*/>|<text class=\"terminal-\d+-r\d+\".*?</text>", re.DOTALL)
_CLASS = re.compile(r' class="terminal-\d+-(r\d+)"')
_CLIP = re.compile(r' clip-path="[^"]*"')
_SHIFT = re.compile(r'<g transform="(translate\([^"]*\))"')


def moving(frames: list[tuple[float, str]], rest: float) -> str:
    """One SVG that shows `frames` (seconds since the start, SVG) at their times, over and over; the last one stays for
    `rest` seconds."""
    total = frames[-1][0] + rest
    starts = [when for when, _ in frames]
    ends = [*starts[1:], total]
    shown: dict[str, list[tuple[float, float]]] = {}
    for (start, svg), end in zip(frames, ends, strict=True):
        for element in _elements(svg):
            spans = shown.setdefault(element, [])
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    groups: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for element, spans in shown.items():
        groups.setdefault(tuple(spans), []).append(element)
    last = frames[-1][1]
    view = re.search(r'viewBox="([^"]+)"', last)
    places = _SHIFT.findall(last)
    window = re.search(r'<rect fill="[^"]*" stroke=[^>]*/>.*?</g>', last, re.DOTALL)
    if view is None or window is None or not places:
        raise ValueError("this isn't a picture that Textual made")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view[1]}">',
        "<style>text{font:20px Fira Code,monospace;white-space:pre}</style>",
        re.sub(r' class="[^"]*"', "", window[0]),
        f'<g transform="{places[-1]}">',
    ]
    for kind in ("<rect", "<text"):  # all backgrounds lie under all letters: only one frame's are to be seen
        for spans, elements in groups.items():
            chosen = [each for each in elements if each.startswith(kind)]
            if chosen:
                parts.append(f"<g>{_animation(spans, total)}{''.join(chosen)}</g>")
    return "\n".join([*parts, "</g></svg>\n"])


def content(svg: str) -> list[str]:
    """What a frame shows, apart from the name that Textual gives it."""
    return list(_elements(svg))


def _elements(svg: str) -> Iterator[str]:
    """Backgrounds and pieces of text, each with its style instead of its frame's class."""
    styles = {name: re.sub(r"\s*([:;])\s*", r"\1", text.strip()) for name, text in _STYLE.findall(svg)}
    for element in _ELEMENT.findall(svg):
        if " stroke=" in element:
            continue  # the window around the screen
        plain = _CLIP.sub("", element).replace(' shape-rendering="crispEdges"', "")
        if plain.startswith("<text") and not re.sub(r"<[^>]*>|&#160;|\s", "", plain):
            continue  # blanks
        yield _CLASS.sub(lambda found: f' style="{styles[found[1]]}"', plain)


def _animation(spans: tuple[tuple[float, float], ...], total: float) -> str:
    """Visible in `spans`, hidden else; nothing where it always is."""
    if spans == ((0.0, total),):
        return ""
    states: list[tuple[float, str]] = [] if spans[0][0] == 0 else [(0.0, "hidden")]
    for start, end in spans:
        states.append((start, "visible"))
        if end < total:
            states.append((end, "hidden"))
    times = ";".join(f"{when / total:.4f}" for when, _ in states)
    values = ";".join(state for _, state in states)
    return (
        f'<animate attributeName="visibility" calcMode="discrete" dur="{total:.2f}s" repeatCount="indefinite" '
        f'keyTimes="{times}" values="{values}"/>'
    )
