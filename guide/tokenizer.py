"""Trains the guide's tokenizer: byte-level BPE with ChatML specials, in a file that `guide.export` turns into GGUF.

python -m guide.tokenizer            writes guide/tokenizer.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from guide.conversations import Corpus, Turn

PATH = Path(__file__).parent / "tokenizer.json"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# llama.cpp's pre-tokenizer "qwen2", so that both split words alike.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def train(corpus: Corpus, n_vocab: int, samples: int, seed: int) -> Tokenizer:
    """A tokenizer over `samples` drawn conversations; answers count fully, noise only a little."""
    rng = Random(seed)
    texts = []
    for _ in range(samples):
        turns = corpus.conversation(rng)
        texts += [text for _, text in turns]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=6,
    )
    tok.train_from_iterator(texts, trainer)
    return tok


class Encoder:
    """Conversations to token ids and loss weights."""

    def __init__(self, tok: Tokenizer, question_weight: float = 0.1) -> None:
        self.tok = tok
        self.end, self.start, self.stop = (tok.token_to_id(s) for s in SPECIALS)
        self.roles = {role: [self.start, *tok.encode(role + "\n").ids] for role in ("system", "user", "assistant")}
        self.newline = tok.encode("\n").ids
        self.question_weight = question_weight

    def encode(self, turns: list[Turn]) -> tuple[list[int], list[float]]:
        """ids and, for each id, the weight of predicting it: 1 in answers and their end, little in questions."""
        ids: list[int] = []
        weights: list[float] = []
        for role, text in turns:
            body = self.tok.encode(text).ids
            weight = 1.0 if role == "assistant" else self.question_weight if role == "user" else 0.0
            head = self.roles[role]
            ids += [*head, *body, self.stop, *self.newline]
            weights += [0.0] * len(head) + [weight] * len(body)
            weights += [1.0 if role == "assistant" else 0.0] + [0.0] * len(self.newline)
        return ids, weights

    def prompt(self, turns: list[Turn]) -> list[int]:
        """ids up to where the assistant begins."""
        return self.encode(turns)[0] + self.roles["assistant"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    tok = train(Corpus(), args.vocab, args.samples, args.seed)
    tok.save(str(PATH))
    print(f"{PATH.name}: {tok.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
