"""What the name of a GGUF file tells, and names made fit to be shown. Pure text: nothing here touches a disk."""

from __future__ import annotations

import re

MAX_PARTS = 1000
_PART = re.compile(r"^(?P<stem>.+)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.gguf)$", re.IGNORECASE)
LABEL = re.compile(
    r"(?:^|[-_. /])((?:UD-)?(?:IQ\d_[A-Z]{1,3}|TQ\d_\d|Q\d_K(?:_[A-Z]{1,2})?|Q\d_\d(?:_\d_\d)?|MXFP4(?:_MOE)?|NVFP4"
    r"|BF16|FP?16|FP?32))(?=[-_. /]|$)",
    re.IGNORECASE,
)


def part_names(name: str) -> tuple[str, ...]:
    """The file names of the set that `name` (no folder) belongs to; just itself where it is no part of a set."""
    match = _PART.match(name)
    if match is None:
        return (name,)
    count = int(match["count"])
    if not 1 <= int(match["no"]) <= count or count > MAX_PARTS:
        return (name,)
    return tuple(f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}" for i in range(1, count + 1))


def quant_label(name: str) -> str | None:
    """The quantization that a file name tells, e.g. ``UD-Q4_K_XL``; None where it tells none."""
    found = LABEL.findall(name.removesuffix(".gguf"))
    return str(found[-1]).upper() if found else None


def clean_text(text: str, limit: int) -> str:
    """Text from a file, fit for a terminal: no control characters, one line, at most `limit` characters."""
    return "".join(ch if ch.isprintable() else " " for ch in text[:limit]).strip()
