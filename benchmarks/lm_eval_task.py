#!/usr/bin/env python3
"""lm-evaluation-harness against `serve demo`: a task of four questions that is written here, by log-likelihood.

    python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm-eval[api]'
    python benchmarks/lm_eval_task.py --lm-eval /tmp/lm-eval/bin/lm_eval

Prints what the harness found, and the same figures computed here from the answers of `/v1/completions` with `echo` and
`logprobs`; ends with 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parent))
from served import served

ROWS: list[dict[str, Any]] = [
    {"question": "An expert is", "choices": [" a part of a layer", " a kind of cheese"], "gold": 0},
    {"question": "The router chooses", "choices": [" the weather", " the experts"], "gold": 1},
    {"question": "The KV cache holds", "choices": [" keys and values", " money and gold"], "gold": 0},
    {"question": "A prompt is read", "choices": [" by the moon", " token by token"], "gold": 1},
]
TASK = """task: flashmoe_tiny
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def harness(command: str, url: str, model: str, folder: Path) -> float:
    """The accuracy that the harness finds."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "flashmoe_tiny.yaml").write_text(TASK.replace("DATA", str(data)))
    where = f"model={model},base_url={url}/v1/completions,num_concurrent=4"
    arguments = [
        "--model", "local-completions", "--tasks", "flashmoe_tiny", "--include_path", str(folder), "--model_args",
        f"{where},max_length=1024", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    subprocess.run([command, *arguments], env={**offline, "OPENAI_API_KEY": "local"}, check=True, timeout=900)
    (result,) = (folder / "out").rglob("results_*.json")
    told: dict[str, Any] = json.loads(result.read_text())["results"]["flashmoe_tiny"]
    return float(told["acc,none"])


def here(url: str) -> float:
    """The accuracy from the log probabilities that the server tells."""
    right = 0
    for row in ROWS:
        sums = []
        for choice in row["choices"]:
            asked = {"prompt": row["question"] + choice, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
            told = httpx2.post(f"{url}/v1/completions", json=asked, timeout=300).json()["choices"][0]["logprobs"]
            start = len(row["question"])
            end = len(row["question"] + choice)
            pairs = zip(told["text_offset"], told["token_logprobs"], strict=True)
            sums.append(sum(p for at, p in pairs if start <= at < end))
        right += sums.index(max(sums)) == row["gold"]
    return right / len(ROWS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--lm-eval", default="lm_eval", help="the harness's command")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(args.model, ["--kv-dir", "none"]) as (_, url):
        name = httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
        found, own = harness(args.lm_eval, url, name, Path(folder)), here(url)
    print(f"accuracy: the harness {found:.2f}, here {own:.2f}")
    return 0 if found == own else 1


if __name__ == "__main__":
    sys.exit(main())
