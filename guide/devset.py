"""Question sets: what is asked and what a right answer must say.

- `guide/dev_questions.yaml` tunes the corpus; wordings near to its questions are in the corpus by now.
- `guide/check_questions.yaml` was written after the corpus was done, to check the shipped file.
- `guide/eval_questions.yaml` was written apart from the corpus by somebody who had not read it; never used for tuning.

Each is a list of

    - id: stop-key
      question: ...
      turns: [user, assistant, ...]      earlier turns in alternation (optional)
      must: [[esc], [stop, stops]]       every group needs one of its lowercase substrings
      must_not: [ctrl+c]                 none of these
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

PATH = Path(__file__).parent / "dev_questions.yaml"


@dataclass
class Case:
    id: str
    turns: list[tuple[str, str]]
    """(role, text), the last one a user's."""
    must: list[list[str]]
    must_not: list[str]

    def right(self, reply: str) -> bool:
        text = reply.lower()
        return all(any(option in text for option in group) for group in self.must) and not any(
            word in text for word in self.must_not
        )


def load(path: Path = PATH) -> list[Case]:
    """The cases of a file; raises ValueError where an entry isn't of the form."""
    cases = []
    for raw in yaml.safe_load(path.read_text()):
        asked = [*raw.get("turns", []), raw["question"]]
        must = [
            [str(option).lower() for option in (group if isinstance(group, list) else [group])] for group in raw["must"]
        ]
        turns = [(("user", "assistant")[i % 2], str(text)) for i, text in enumerate(asked)]
        cases.append(Case(str(raw["id"]), turns, must, [str(w).lower() for w in raw.get("must_not") or []]))
    return cases
