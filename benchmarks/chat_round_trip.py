"""Answers rendered by real templates and parsed again: what comes out must be what went in.

``python -m benchmarks.chat_round_trip llama_cpp_python-0.3.36.tar.gz [NAME]`` takes the 70 templates of llama.cpp's
sdist (nothing of it is kept here) and the cases of `tests/backends/chat_format/round_trip.py`, each whole and by 1, 3
and 7 characters, and cut off (``--cut N``: after each Nth character; 0: not at all).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backends.chat_format.templates import ChatTemplate
from tests.backends.chat_format.round_trip import DirectRenderer, differs, trips, unsound

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chat_format import files_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("name", nargs="?", default="", help="a part of a template's name")
    parser.add_argument("--cut", type=int, default=5, metavar="N")
    args = parser.parse_args()
    right = total = cuts = cuts_right = templates = 0
    for path, source in files_of(args.sdist).items():
        name = path.rpartition("/")[2]
        if not name.endswith(".jinja") or args.name not in name:
            continue
        templates += 1
        renderer = DirectRenderer()
        made = ChatTemplate(source, bos="<s>", eos="</s>", renderer=renderer)  # type: ignore[arg-type]
        for trip in trips(made):
            total += 1
            wrong = differs(made, trip)
            right += not wrong
            if args.cut and not wrong:
                cuts += 1
                broken = unsound(made, trip, args.cut)
                cuts_right += not broken
                wrong += [f"cut off, {broken[0]} ({len(broken)} places)"] if broken else []
            if wrong:
                print(f"{name}: {trip.name}: {'; '.join(w[:300] for w in wrong)}")
                print(f"    {trip.after[-40:]!r} {trip.raw[:300]!r}")
    print(f"{templates} templates: {right} of {total} answers come back as they went in", end="")
    print(f"; cut off, all that is given is sound in {cuts_right} of {cuts}" if args.cut else "")


if __name__ == "__main__":
    main()
