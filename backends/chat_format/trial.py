"""Schemas and grammars are compiled and tried out before the engine sees them: in a process with limits of its own.

A grammar of a few kilobytes can cost minutes and gigabytes, and nothing can stop that in the process that decodes for
everybody. llguidance bounds what it does by its own units; the helper bounds it by the kernel's, at the compilation and
while some text is drawn by it. This module is both: `Trial`, and what runs in the helper (``python -m``).
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import OrderedDict
from typing import Any

import msgspec

from backends.chat_format.constraint import Constraint, Kind, Matcher, compile_constraint
from backends.interface import EngineError
from backends.system.helper import Helper, run_jobs

CPU_S = 3
"""Seconds of processor time that a constraint may take to be compiled and to draw `STEPS` bytes."""
CLOCK_S = 30.0
MEMORY_BYTES = 1 << 30
STEPS = 200
_KEPT = 256


class Trial:
    """Compiles constraints in a helper. Thread-safe; what passed once isn't tried again."""

    def __init__(self) -> None:
        self._helper = Helper("backends.chat_format.trial", CLOCK_S)
        self._passed: OrderedDict[str, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the helper without waiting for it."""
        self._helper.warm_up()

    def compile(self, kind: Kind, text: str) -> Constraint:
        """As `compile_constraint`. Raises `EngineError` ``bad_request`` also where it costs too much."""
        key = hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            found = self._passed.get(key)
        if found is None:
            found = self._tried(kind, text)
            with self._lock:
                self._passed[key] = found
                while len(self._passed) > _KEPT:
                    self._passed.popitem(last=False)
        return found

    def _tried(self, kind: Kind, text: str) -> Constraint:
        answer = self._helper.ask({"kind": kind, "text": text})
        if answer is None or "error" in answer:
            named = "The JSON schema" if kind == "json_schema" else "The grammar"
            bounds = f"{CPU_S} s, {MEMORY_BYTES >> 30} GiB or the guide's own bounds"
            what = f"{named} costs too much to be followed (more than {bounds})"
            raise EngineError("bad_request", what, "make it simpler: fewer optional parts, smaller repetitions.")
        if "refused" in answer:
            raise EngineError("bad_request", *answer["refused"])
        return Constraint(answer["grammar"], answer["schema"])

    def close(self) -> None:
        """Ends the helper."""
        self._helper.close()


# ---- in the helper -----------------------------------------------------------------------------------------------


def main() -> None:
    """Compiles and tries what it is given."""
    import llguidance

    tokenizer = llguidance.LLTokenizer("byte")
    _try(tokenizer, {"kind": "json_schema", "text": '{"type": "null"}'})  # what is made once is made before it is asked
    run_jobs(lambda job: _try(tokenizer, job), cpu_s=CPU_S, memory_bytes=MEMORY_BYTES)


def _try(tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    began = time.process_time()
    try:
        constraint = compile_constraint(job["kind"], job["text"])
    except EngineError as error:
        return {"refused": [error.what, error.advice]}
    passed = {"grammar": constraint.grammar, "schema": constraint.schema}
    matcher = None
    try:
        matcher = Matcher(tokenizer, _in_bytes(constraint, tokenizer))
        rng = random.Random(1)
        for _ in range(STEPS):
            if matcher.over:
                break
            allowed = matcher.allowed()
            matcher.accept(int(allowed[rng.randrange(len(allowed))]))
            if time.process_time() - began > CPU_S:
                return {"error": "it takes too long"}
    except EngineError:  # where nothing can follow, the answer tells; where it costs too much, this does
        return {"error": "it costs too much"} if matcher is None or matcher.broken else passed
    return passed


_TOKEN = re.compile(r"<\[[\d\s,-]+\]>")


def _in_bytes(constraint: Constraint, tokenizer: Any) -> Constraint:
    """The constraint with a token that this vocabulary of bytes has in place of a model's special ones."""
    other = next(t for t in range(256, tokenizer.vocab_size) if t not in tokenizer.eos_tokens)
    return msgspec.structs.replace(constraint, grammar=_TOKEN.sub(f"<[{other}]>", constraint.grammar))


if __name__ == "__main__":
    main()
