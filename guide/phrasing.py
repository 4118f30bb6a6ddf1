"""Questions from patterns: alternations, macros, templates, wrappers and noise.

A pattern is text with ``{a|b|c}`` (one of these; nests; an empty alternative is fine) and ``<name>`` (a macro, itself
a list of patterns). Everything random comes from the `random.Random` that is handed in, so a seed gives the same text
everywhere.
"""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random

_MACRO = re.compile(r"<([a-z_0-9]+)>")
Node = str | tuple["Node", ...] | list["Node"]
"""A string, a sequence (tuple) or a choice (list)."""


def parse(pattern: str) -> Node:
    """The tree of a pattern; raises ValueError where braces don't match."""
    node, end = _sequence(pattern, 0, False)
    if end != len(pattern):
        raise ValueError(f"unbalanced braces in {pattern!r}")
    return node


def _sequence(text: str, i: int, inside: bool) -> tuple[Node, int]:
    parts: list[Node] = []
    plain: list[str] = []
    while i < len(text):
        char = text[i]
        if char == "{":
            if plain:
                parts.append("".join(plain))
                plain = []
            options: list[Node] = []
            i += 1
            while True:
                option, i = _sequence(text, i, True)
                options.append(option)
                if i >= len(text):
                    raise ValueError(f"unbalanced braces in {text!r}")
                i += 1
                if text[i - 1] == "}":
                    break
            parts.append(options)
        elif inside and char in "|}":
            break
        else:
            plain.append(char)
            i += 1
    if plain:
        parts.append("".join(plain))
    return tuple(parts), i


class Grammar:
    """Macros and the rendering of patterns."""

    def __init__(self, macros: dict[str, list[str]]) -> None:
        self.macros = macros
        self._parse = lru_cache(maxsize=None)(parse)

    def render(self, pattern: str, rng: Random, depth: int = 0) -> str:
        """One random expansion of the pattern, spaces tidied."""
        text = self._walk(self._parse(pattern), rng)
        if "<" in text and depth < 8:
            text = _MACRO.sub(lambda m: self._macro(m, rng, depth), text)
        return text if depth else re.sub(r" +([?,.!]|$)", r"\1", re.sub(r" +", " ", text)).strip()

    def _macro(self, match: re.Match[str], rng: Random, depth: int) -> str:
        name = match.group(1)
        if name == "pseudo":
            return pseudo_word(rng)
        if name == "n":
            return str(rng.randrange(10 ** rng.choice((1, 1, 2, 2, 3, 4))))
        options = self.macros.get(name)
        return match.group(0) if options is None else self.render(rng.choice(options), rng, depth + 1)

    def _walk(self, node: Node, rng: Random) -> str:
        if isinstance(node, str):
            return node
        if isinstance(node, list):
            return self._walk(rng.choice(node), rng)
        return "".join(self._walk(part, rng) for part in node)

    def count(self, pattern: str) -> int:
        """How many expansions a pattern has (macros counted as one level)."""
        return self._count(self._parse(_MACRO.sub(lambda m: self._inline(m), pattern)))

    def _inline(self, match: re.Match[str]) -> str:
        options = self.macros.get(match.group(1))
        return match.group(0) if options is None else "{" + "|".join(options) + "}"

    def _count(self, node: Node) -> int:
        if isinstance(node, str):
            return 1
        if isinstance(node, list):
            return sum(self._count(option) for option in node)
        total = 1
        for part in node:
            total *= self._count(part)
        return total


_ONSET = (
    "b",
    "br",
    "c",
    "ch",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "qu",
)
_ONSET2 = ("r", "s", "sch", "sh", "sk", "sl", "st", "str", "t", "th", "tr", "v", "w", "y", "z", "", "")
_CODA = ("", "", "", "n", "r", "s", "t", "l", "m", "nd", "x", "ck", "ng", "rt", "st", "ph")
_ENDING = (
    "",
    "",
    "",
    "ium",
    "ology",
    "ing",
    "er",
    "ation",
    "ism",
    "ity",
    "us",
    "ia",
    "ness",
    "able",
    "ous",
    "ment",
    "ist",
)


def pseudo_word(rng: Random) -> str:
    """A word that nobody knows, so that the guide learns to say no to what it has never seen."""
    parts = [
        rng.choice(_ONSET + _ONSET2) + rng.choice("aeiou") + rng.choice(_CODA) for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return "".join(parts) + rng.choice(_ENDING)


# ---- noise -------------------------------------------------------------------------------------------------------

_NEAR = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "ko", "m": "n", "n": "bm", "o": "ip", "p": "ol", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "xs",
}  # fmt: skip
_DROPPABLE = frozenset(
    "a an the is are do does can could i to of in on it my me please for this that there be you your would with and so just"
    " at from have has any some should will".split()
)
_FUNCTION = _DROPPABLE | frozenset(
    "i what how which when where why who it its we they he she was were be been not or but if than then into by as"
    " one about up out no yes am i'm i'd it's what's don't doesn't can't want need know get got".split()
)
_SHORT = {"you": "u", "please": "pls", "are": "r", "your": "ur", "because": "cuz", "what's": "whats", "and": "&"}


def typo(word: str, rng: Random) -> str:
    """A word with one slip of the finger; short words stay as they are."""
    letters = [i for i, c in enumerate(word) if c.isalpha()]
    if len(letters) < 4:
        return word
    i = rng.choice(letters[1:])
    kind = rng.randrange(4)
    if kind == 0:
        return word[:i] + word[i + 1 :]
    if kind == 1:
        return word[:i] + word[i] + word[i:]
    if kind == 2:
        return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    near = _NEAR.get(word[i].lower(), "")
    return word[:i] + (rng.choice(near) if near else word[i]) + word[i + 1 :]


def bag(text: str, rng: Random) -> str:
    """Only the words that matter, in any order, as people type into a search box."""
    words = [w for w in text.rstrip("?.! ").split(" ") if w.lower().strip("?,.!'") not in _FUNCTION]
    if len(words) < 2:
        return text
    rng.shuffle(words)
    return " ".join(words)


def noise(text: str, rng: Random) -> str:
    """What people do to a question while typing: case, marks, slips, words left out."""
    words = text.split(" ")
    if len(words) > 3 and rng.random() < 0.22:
        rate = rng.choice((0.3, 0.6, 1.0))
        words = [w for w in words if w.lower().strip("?,.!") not in _DROPPABLE or rng.random() > rate] or words
    elif len(words) > 5 and rng.random() < 0.10:
        words.pop(rng.randrange(len(words)))
    if rng.random() < 0.14:
        for _ in range(rng.choice((1, 1, 2))):
            i = rng.randrange(len(words))
            words[i] = typo(words[i], rng)
    if rng.random() < 0.05:
        words = [_SHORT.get(w.lower(), w) for w in words]
    text = " ".join(words)
    if rng.random() < 0.25:
        text = text.replace("'", "")
    case = rng.random()
    if case < 0.40:
        text = text.lower()
    elif case < 0.80:
        text = text[:1].upper() + text[1:]
    elif case < 0.82:
        text = text.upper()
    elif case < 0.84:
        text = text.title()
    mark = rng.random()
    if text.endswith("?"):
        if mark < 0.35:
            text = text[:-1]
        elif mark < 0.40:
            text = text[:-1] + rng.choice((" ?", "??", "?!", ".", "!"))
    elif text[-1:].isalnum() and mark < 0.12:
        text += rng.choice((".", "!", "?", "...", " ?"))
    return text or "?"
