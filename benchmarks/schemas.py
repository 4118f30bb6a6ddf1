"""Whether the guide holds what it takes: JSON-Schema-Test-Suite's schemas, and schemas as APIs have them.

``python -m benchmarks.schemas FOLDER`` (a checkout of github.com/json-schema-org/JSON-Schema-Test-Suite; nothing of it
is kept here). Each schema is refused by name, or: every answer that is drawn by it validates with `jsonschema`, none of
the suite's invalid values can be written under it, and it is counted how many of the valid ones can. Without FOLDER the
schemas of `tests/backends/chat_format/api_schemas.py` alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import llguidance

from backends.chat_format.constraint import Constraint, Matcher, compile_constraint
from backends.interface import EngineError
from tests.backends.chat_format.api_schemas import api_schemas

DRAFTS = {"draft2020-12": jsonschema.Draft202012Validator, "draft7": jsonschema.Draft7Validator}
MAX_BYTES = 4000
TOKENIZER = llguidance.LLTokenizer("byte")
_CLOSING = frozenset(b'"}]')


def drawn(constraint: Constraint, rng: random.Random) -> str | None:
    """An answer of a model that has learnt nothing; after a while it prefers to come to an end. None: it never did."""
    matcher, found = Matcher(TOKENIZER, constraint), bytearray()
    while not matcher.over and len(found) < MAX_BYTES:
        allowed = [int(t) for t in matcher.allowed()]
        ends = [t for t in allowed if t >= 256]
        if ends and (len(allowed) == len(ends) or rng.random() < 0.3):
            break
        closing = [t for t in allowed if t in _CLOSING]
        plain = [t for t in allowed if t < 256]
        token = rng.choice(closing if closing and rng.random() < min(0.9, len(found) / 200) else plain)
        matcher.accept(token)
        found.append(token)
    return found.decode("utf-8", "replace") if matcher.over or matcher.accepting else None


def writable(constraint: Constraint, value: Any) -> bool:
    """Whether a value can be an answer."""
    matcher = Matcher(TOKENIZER, constraint)
    tokens = list(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return matcher.take(tokens) and matcher.accepting


@dataclass
class Counts:
    """Of one collection of schemas."""

    schemas: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    endless: int = 0
    wrong: list[str] = field(default_factory=list)
    valid: Counter[bool] = field(default_factory=Counter)

    def told(self) -> str:
        held = self.schemas - sum(self.refused.values())
        return (
            f"{self.schemas} schemas: {held} held, {sum(self.refused.values())} refused by name; "
            f"{self.answers} answers drawn ({self.endless} cut off), {len(self.wrong)} wrong; "
            f"valid values that can be written: {self.valid[True]} of {self.valid.total()}"
        )


def measure(schema: Any, validator: Any, tests: list[Any], counts: Counts, rng: random.Random, draws: int) -> None:
    """One schema and its tests."""
    counts.schemas += 1
    try:
        constraint = compile_constraint("json_schema", json.dumps(schema))
        Matcher(TOKENIZER, constraint)
    except EngineError as error:
        counts.refused[re.sub(r"['\"“].*", "…", error.what.partition(": ")[2])[:60] or error.what[:60]] += 1
        return
    checker = validator(json.loads(json.dumps(schema), parse_float=Decimal))
    for _ in range(draws):
        try:
            answer = drawn(constraint, rng)
        except EngineError as error:
            counts.wrong.append(f"{json.dumps(schema)[:200]}: {error.what}")
            continue
        if answer is None:
            counts.endless += 1
            continue
        counts.answers += 1
        try:
            checker.validate(json.loads(answer, parse_float=Decimal))
        except (ValueError, jsonschema.ValidationError) as error:
            counts.wrong.append(f"{json.dumps(schema)[:300]}: {answer[:100]!r}: {str(error).splitlines()[0][:120]}")
        except Exception:  # jsonschema itself can't follow it (a reference to elsewhere)
            counts.endless += 1
    for test in tests:
        can = writable(constraint, test["data"])
        if test["valid"]:
            counts.valid[can] += 1
        elif can:
            counts.wrong.append(f"{json.dumps(schema)[:300]}: takes {json.dumps(test['data'])[:100]}")


def suite(folder: Path, draft: str) -> Iterator[tuple[str, Any, list[Any]]]:
    """(file, schema, tests) of a draft."""
    for path in sorted((folder / "tests" / draft).glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            yield path.stem, group["schema"], group["tests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--api", type=int, default=200, help="schemas as APIs have them")
    args = parser.parse_args()
    rng, results = random.Random(19), {}
    for draft, validator in DRAFTS.items() if args.folder else ():
        counts = results[draft] = Counts()
        for _, schema, tests in suite(args.folder, draft):
            measure(schema, validator, tests, counts, rng, args.draws)
    counts = results["as APIs have them"] = Counts()
    for schema in api_schemas(random.Random(19), args.api):
        measure(schema, jsonschema.Draft202012Validator, [], counts, rng, args.draws)
    for name, counts in results.items():
        print(f"{name}: {counts.told()}")
        for why, n in counts.refused.most_common():
            print(f"    refused {n}: {why}")
        for wrong in counts.wrong:
            print(f"    wrong: {wrong}")


if __name__ == "__main__":
    main()
