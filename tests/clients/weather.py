"""What every script here asks about: a place and a number that a schema bounds."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

KEY = "unused"
QUESTION = "What is the weather in Paris?"
RESULT = "17 degrees and dry"


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=9)


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}  # fmt: skip


def root() -> str:
    """``http://host:port`` as the script was given it."""
    return sys.argv[1]


def holds(arguments: dict[str, Any]) -> None:
    """Raises where a call's arguments aren't what its schema allows."""
    Weather.model_validate(arguments, strict=True)
