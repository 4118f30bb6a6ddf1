"""The guide's corpus: well-formed, consistent with the program, apart from the evaluation set. Needs no PyTorch."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from flashmoe.cli.table import COMMANDS
from guide import devset
from guide.conversations import Corpus
from guide.phrasing import Grammar, noise, parse
from tui.key_table import KEYS
from tui.screens.chat.commands import COMMANDS as SLASH

GUIDE = Path(devset.__file__).parent


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def texts(corpus: Corpus) -> list[str]:
    """Everything the guide may answer."""
    found = []
    for topic in corpus.topics:
        found += topic.answers + [text for part in topic.aspects.values() for text in part]
        found += [text for _, replies in topic.followups for text in replies]
    return found


def test_every_pattern_renders_without_leftovers(corpus: Corpus) -> None:
    rng = Random(1)
    for topic in corpus.topics:
        for _, patterns in topic.forms:
            for pattern in patterns:
                assert not re.search(r"[<{|}]", corpus.grammar.render(pattern, rng)), (topic.id, pattern)


def test_there_are_enough_topics_and_phrasings(corpus: Corpus) -> None:
    assert len(corpus.topics) > 200
    rng = Random(2)
    for topic in corpus.topics:
        assert len({corpus.plain_question(topic, rng) for _ in range(60)}) >= 10, topic.id


def test_conversations_depend_on_the_seed_alone(corpus: Corpus) -> None:
    one = [corpus.conversation(Random(seed)) for seed in range(50)]
    assert one == [corpus.conversation(Random(seed)) for seed in range(50)]
    for turns in one:
        spoken = [role for role, _ in turns if role != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)


def test_commands_in_answers_exist(corpus: Corpus) -> None:
    for text in texts(corpus):
        for command in re.findall(r"`flashmoe-tui ([a-z]+)\b", text):
            assert command in COMMANDS or command == "path", text


def test_keys_in_answers_are_bound(corpus: Corpus) -> None:
    bound = {key for spec in KEYS for key in spec.keys.split(",")} | {"enter", "escape", "pageup", "pagedown", "tab"}
    bound |= {key.partition(" ")[0] for key in bound}  # leaders
    for text in texts(corpus):
        for key in re.findall(r"\*\*((?:Ctrl|Alt|Shift)\+[A-Za-z]+(?: \S)?|F\d+|Esc)\*\*", text):
            named = key.lower().replace("esc", "escape").replace("/", "slash")
            assert named in bound, (key, text)


def test_slash_commands_in_answers_exist(corpus: Corpus) -> None:
    known = {command.name for command in SLASH} | {"NAME", "review", "command"}
    known |= {"v", "health", "metrics"}  # of the server
    for text in texts(corpus):
        for name in re.findall(r"`/([A-Za-z]+)", text):
            assert name in known, text


@pytest.mark.parametrize("name", ["eval_questions.yaml", "check_questions.yaml"])
def test_questions_held_out_are_no_phrasings_of_the_corpus(corpus: Corpus, name: str) -> None:
    def plain(text: str) -> str:
        return " ".join(re.findall(r"[a-z0-9]+", text.lower()))

    rng = Random(3)
    drawn = {plain(corpus.plain_question(topic, rng)) for topic in corpus.topics for _ in range(150)}
    cases = devset.load(GUIDE / name)
    same = [case.id for case in cases if len(case.turns) == 1 and plain(case.turns[0][1]) in drawn]
    assert not same


def test_patterns_nest_and_bad_ones_are_refused() -> None:
    grammar = Grammar({"who": ["{a|the} {cat|dog}"]})
    seen = {grammar.render("see <who>{|{!|?}}", Random(seed)) for seed in range(200)}
    assert "see a cat" in seen
    assert "see the dog?" in seen
    assert len(seen) == 12
    for bad in ("{a|b", "a {b|{c}"):
        with pytest.raises(ValueError, match="unbalanced"):
            parse(bad)


def test_noise_keeps_text() -> None:
    rng = Random(4)
    assert all(noise("how do I stop an answer?", rng).strip() for _ in range(500))
