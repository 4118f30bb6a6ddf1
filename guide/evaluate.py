"""Asks a GGUF questions through llama.cpp and counts right answers.

    python -m guide.evaluate                                 the evaluation set, greedy and at the app's sampling
    python -m guide.evaluate guide/dev_questions.yaml --greedy --failures

Needs llama-cpp-python and PyYAML only. The forms of the questions are told in `guide.devset`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np

from guide.devset import Case, load

HERE = Path(__file__).parent
EVAL = HERE / "eval_questions.yaml"
MODEL = HERE.parent / "flashmoe" / "assets" / "guide.gguf"
APP = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "min_p": 0.05}
"""The app's default sampling."""


class Asker:
    """One loaded GGUF. The ChatML prompt is put together here, as the file's template does."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self.llama = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
        self.stop = self.llama.token_eos()

    def answer(self, turns: list[tuple[str, str]], seed: int | None = None, limit: int = 200) -> str:
        """The answer to the last turn; greedy where seed is None."""
        text = (
            "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
        )
        prompt = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        settings = {"temperature": 0.0} if seed is None else {**APP, "seed": seed}
        reply = self.llama.create_completion(prompt, max_tokens=limit, repeat_penalty=1.0, **settings)
        return str(reply["choices"][0]["text"])

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocabulary) float32."""
        llama = llama_cpp.Llama(self.llama.model_path, n_ctx=1024, logits_all=True, verbose=False)
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)])


def run(asker: Asker, cases: list[Case], seed: int | None) -> Iterator[tuple[Case, str, bool]]:
    for case in cases:
        reply = asker.answer(case.turns, seed)
        yield case, reply, case.right(reply)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, nargs="?", default=EVAL)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seeds", type=int, default=3, help="runs at the app's default sampling")
    parser.add_argument("--greedy", action="store_true", help="only the greedy run")
    parser.add_argument("--failures", action="store_true", help="print wrong answers only")
    parser.add_argument("--json", action="store_true", help="one JSON object with the scores at the end")
    args = parser.parse_args()
    asker, cases = Asker(args.model), load(args.questions)
    scores: dict[str, float] = {}
    for seed in [None] if args.greedy else [None, *range(1, args.seeds + 1)]:
        name = "greedy" if seed is None else f"seed {seed}"
        right = 0
        for case, reply, ok in run(asker, cases, seed):
            right += ok
            if not args.json and (not ok or (seed is None and not args.failures)):
                print(f"[{name}] {'ok   ' if ok else 'WRONG'} {case.id}: {case.turns[-1][1]}\n        {reply!r}")
        scores[name] = right / len(cases)
        if not args.json:
            print(f"{name}: {right} of {len(cases)} right ({scores[name]:.1%})")
    if args.json:
        print(json.dumps({"model": args.model.name, "questions": len(cases), "scores": scores}))


if __name__ == "__main__":
    main()
