"""``python -m backends.llamacpp.special_texts FILE``: the texts of a model's BOS and EOS tokens, as one JSON object.

A process of its own, since llama.cpp ends the process on some bad files. Only the vocabulary is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from backends.system.python import start_python

TIME_LIMIT_S = 60.0


def special_texts(path: Path) -> tuple[str, str]:
    """(BOS, EOS) of a GGUF file; empty texts where it can't be read."""
    start = start_python("backends.llamacpp.special_texts")
    command = [*start.command, str(path.absolute())]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIME_LIMIT_S, check=False, env=start.env, cwd=start.folder
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return "", ""
    return str(found.get("bos", "")), str(found.get("eos", ""))


def main() -> int:
    """Prints the object on what was stdout; llama.cpp's own prints go to stderr."""
    from backends.llamacpp import native
    from backends.llamacpp.vocab import Vocab

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    library = native.lib()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(os.fsencode(sys.argv[1]), parameters)
    if model:
        vocab = Vocab(model)
        out.write(json.dumps({"bos": vocab.bos_text, "eos": vocab.eos_text}) + "\n")
        out.flush()
    return 0 if model else 1


if __name__ == "__main__":
    sys.exit(main())
