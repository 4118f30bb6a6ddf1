"""Help as it is written in the commands, fitted to the terminal: paragraphs flow, definitions hang, examples stay.

A text is written in plain lines. What begins a line is a paragraph and is filled. An indented line with a gap of two
spaces or more is a term and its definition, which goes on in lines indented to the definition; it is wrapped beside its
term. Any other indented line (an example) is kept as it is, so that it can be copied.
"""

from __future__ import annotations

import re
import textwrap

LEAST = 40
"""A narrower terminal breaks lines by itself."""
_TERM = re.compile(r"( +\S.*?\s{2,})(?=\S)")


def reflow(text: str, width: int) -> str:
    """`text` with lines of at most `width` characters, where that is possible without breaking an example."""
    width = max(width, LEAST)
    out: list[str] = []
    paragraph: list[str] = []
    lead = ""

    def flush() -> None:
        nonlocal lead
        if paragraph:
            body = " ".join(paragraph)
            hang = " " * len(lead)
            if len(lead) > width // 2:  # no room beside the term: below it
                out.append(lead.rstrip())
                hang = lead = " " * 6
            out.append(
                textwrap.fill(
                    body, width, initial_indent=lead, subsequent_indent=hang, break_long_words=False,
                    break_on_hyphens=False,
                )
            )  # fmt: skip
            paragraph.clear()
        lead = ""

    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        if not line.strip():
            flush()
            out.append("")
        elif indent and lead and indent == len(lead):
            paragraph.append(line.strip())
        elif indent and (match := _TERM.match(line)):
            flush()
            lead = match[1]
            paragraph.append(line[len(lead) :])
        elif indent:
            flush()
            out.append(line)
        else:
            if lead:
                flush()
            paragraph.append(line)
            if line.endswith(":"):
                flush()
    flush()
    return "\n".join(out)
