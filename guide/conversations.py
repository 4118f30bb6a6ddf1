"""The corpus: topics read from ``corpus/*.yaml`` and conversations drawn from them.

A topic has question forms, answers and follow-ups:

    id:
      what: names of a thing            -> "what is X", "explain X", "X?" …
      do:   verb phrases                -> "how do I X", "which key to X" …
      sym:  things that happen          -> "X, what now?", "why X" …
      err:  words of a message          -> 'what does "X" mean' …
      ask:  whole questions
      a:    answers, one a line (\\n stands for a line break)
      more / why / eg / how / simple:   answers to follow-ups of that kind
      fu:   [{q: questions, a: answers}], follow-ups of its own
      w:    weight (1)

``corpus/wordings/*.yaml`` holds more whole questions, topic by topic, and ``corpus/links/*.yaml`` follow-ups whose answer
is another topic's.

Every field is a block of lines; question lines are patterns of `guide.phrasing`.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import yaml

from guide.phrasing import Grammar, bag, noise

CORPUS = Path(__file__).parent / "corpus"
FORMS = ("what", "do", "sym", "err", "ask")
SHARE = {"ask": 2.0, "more": 2.5}
"""Whole questions come oftener than those made from templates."""
ASPECTS = ("more", "why", "eg", "how", "simple")
Turn = tuple[str, str]
"""(role, text)."""


@dataclass
class Topic:
    """One thing that the guide can say."""

    id: str
    forms: list[tuple[str, list[str]]]
    answers: list[str]
    aspects: dict[str, list[str]] = field(default_factory=dict)
    followups: list[tuple[list[str], list[str]]] = field(default_factory=list)
    weight: float = 1.0
    domain: str = ""


def lines(block: Any) -> list[str]:
    """The lines of a YAML block, blank ones left out."""
    if block is None:
        return []
    items = block if isinstance(block, list) else str(block).split("\n")
    return [str(item).strip() for item in items if str(item).strip()]


def answers(block: Any) -> list[str]:
    return [line.replace("\\n", "\n") for line in lines(block)]


class Corpus:
    """All topics, the grammar and the sampling of conversations."""

    def __init__(self, folder: Path = CORPUS) -> None:
        raw = yaml.safe_load((folder / "grammar.yaml").read_text())
        self.grammar = Grammar({name: lines(block) for name, block in raw["macros"].items()})
        self.templates = {kind: lines(block) for kind, block in raw["templates"].items()}
        self.follow = {kind: lines(block) for kind, block in raw["follow"].items()}
        self.before, self.after = lines(raw["before"]), lines(raw["after"])
        self.systems = lines(raw["systems"])
        self.synonyms = _synonyms(lines(raw["synonyms"]))
        self.topics: list[Topic] = []
        for path in sorted(folder.glob("*.yaml")):
            if path.name not in ("grammar.yaml", "models.yaml"):
                self.topics += read_topics(path)
        self.topics += model_topics(folder / "models.yaml")
        seen: set[str] = set()
        for topic in self.topics:
            if topic.id in seen:
                raise ValueError(f"two topics are called {topic.id}")
            seen.add(topic.id)
        self.by_id = {topic.id: topic for topic in self.topics}
        self.fillers_before, self.fillers_after = lines(raw["fillers_before"]), lines(raw["fillers_after"])
        for path in sorted((folder / "wordings").glob("*.yaml")):
            self._add_wordings(path)
        for path in sorted((folder / "links").glob("*.yaml")):
            self._add_links(path)
        self._cumulative = list(accumulate(topic.weight for topic in self.topics))

    def _add_wordings(self, path: Path) -> None:
        for name, block in yaml.safe_load(path.read_text()).items():
            if name not in self.by_id:
                raise ValueError(f"{path.name}: no topic is called {name}")
            self.by_id[name].forms.append(("more", lines(block)))

    def _add_links(self, path: Path) -> None:
        for name, links in yaml.safe_load(path.read_text()).items():
            for link in links:
                self.by_id[name].followups.append((lines(link["q"]), self.by_id[link["to"]].answers))

    # ---- single questions

    def topic(self, rng: Random) -> Topic:
        """A random topic by weight."""
        return self.topics[bisect(self._cumulative, rng.random() * self._cumulative[-1])]

    def plain_question(self, topic: Topic, rng: Random) -> str:
        """One phrasing without wrappers and noise."""
        # A form's share grows with its lines but slowly, so that one long list doesn't drown the others.
        kind, patterns = rng.choices(topic.forms, [len(p) ** 0.5 * SHARE.get(k, 1.0) for k, p in topic.forms])[0]
        text = self.grammar.render(rng.choice(patterns), rng)
        if kind not in ("ask", "more"):
            template = rng.choice(self.templates[kind])
            text = self.grammar.render(template.replace("X", "\0"), rng).replace("\0", text)
        return text

    def question(self, topic: Topic, rng: Random) -> str:
        """One phrasing as somebody would type it."""
        return self.finish(self.plain_question(topic, rng), rng, short=topic.domain == "smalltalk")

    def finish(self, text: str, rng: Random, short: bool = False) -> str:
        """Synonyms, wrappers, beside-the-point clauses and noise."""
        if rng.random() < 0.6:
            text = self._synonymise(text, rng)
        chance = rng.random()
        if chance < 0.04:
            text = bag(text, rng)
        elif not short:
            if chance < 0.18:
                text = self.grammar.render(rng.choice(self.before), rng) + " " + text
            elif chance < 0.27:
                text = text.rstrip("?.") + " " + self.grammar.render(rng.choice(self.after), rng)
            elif chance < 0.35:
                text = self.grammar.render(rng.choice(self.fillers_before), rng) + " " + text
            elif chance < 0.39:
                end = "" if text.endswith(("?", ".", "!")) else rng.choice((".", "?", ","))
                text = text + end + " " + self.grammar.render(rng.choice(self.fillers_after), rng)
        return noise(text, rng)

    def _synonymise(self, text: str, rng: Random) -> str:
        words = text.split(" ")
        for i, word in enumerate(words):
            core = word.rstrip("?,.!")
            group = self.synonyms.get(core.lower())
            if group and rng.random() < 0.4:
                words[i] = rng.choice(group) + word[len(core) :]
        return " ".join(words)

    # ---- conversations

    def conversation(self, rng: Random, kind: str | None = None) -> list[Turn]:
        """Turns of one conversation: `single`, `follow` (2 to 4) or `long` (4 to 15 turns of question and answer)."""
        if kind is None:
            kind = rng.choices(("single", "follow", "long"), (0.62, 0.22, 0.16))[0]
        turns: list[Turn] = []
        if rng.random() < 0.3:
            turns.append(("system", self.grammar.render(rng.choice(self.systems), rng)))
        topic = self.topic(rng)
        self._say(turns, topic, rng)
        if kind == "follow":
            for _ in range(rng.choice((1, 1, 2, 3))):
                topic = self._follow(turns, topic, rng)
        elif kind == "long":
            for _ in range(rng.randint(3, 14)):
                if rng.random() < 0.35:
                    topic = self._follow(turns, topic, rng)
                else:
                    topic = self.topic(rng)
                    self._say(turns, topic, rng)
        return turns

    def _say(self, turns: list[Turn], topic: Topic, rng: Random) -> None:
        turns.append(("user", self.question(topic, rng)))
        turns.append(("assistant", self.reply(rng.choice(topic.answers), rng)))

    def reply(self, text: str, rng: Random) -> str:
        return self.grammar.render(text, rng) if "{" in text else text

    def _follow(self, turns: list[Turn], topic: Topic, rng: Random) -> Topic:
        if rng.random() < 0.15:
            # What was said before may be shorter than what the guide would say.
            role, text = turns[-1]
            turns[-1] = (role, text.split(". ")[0].split("\n")[0].rstrip(".:") + ".")
        if topic.followups and rng.random() < (0.75 if len(topic.followups) > 2 else 0.5):
            patterns, replies = rng.choice(topic.followups)
            turns.append(("user", self.finish(self.grammar.render(rng.choice(patterns), rng), rng)))
            turns.append(("assistant", rng.choice(replies)))
            return topic
        kinds = [kind for kind in ASPECTS if kind in topic.aspects]
        kind = rng.choice(kinds) if kinds and rng.random() < 0.7 else rng.choice((*ASPECTS, "thanks"))
        if kind == "thanks":
            thanks = self.by_id["thanks"]
            self._say(turns, thanks, rng)
            return topic
        replies = topic.aspects.get(kind) or (topic.aspects.get("more") if kind != "simple" else None) or topic.answers
        turns.append(("user", noise(self.grammar.render(rng.choice(self.follow[kind]), rng), rng)))
        turns.append(("assistant", rng.choice(replies)))
        return topic


def read_topics(path: Path) -> list[Topic]:
    """The topics of one file; raises ValueError with the file and topic named."""
    topics = []
    for name, raw in yaml.safe_load(path.read_text()).items():
        unknown = set(raw) - {*FORMS, *ASPECTS, "a", "fu", "w"}
        if unknown or "a" not in raw:
            raise ValueError(f"{path.name}: {name}: unknown or missing fields {sorted(unknown)}")
        forms = [(form, lines(raw[form])) for form in FORMS if form in raw]
        if not forms:
            raise ValueError(f"{path.name}: {name}: no questions")
        topics.append(
            Topic(
                id=name,
                forms=forms,
                answers=answers(raw["a"]),
                aspects={aspect: answers(raw[aspect]) for aspect in ASPECTS if aspect in raw},
                followups=[(lines(f["q"]), answers(f["a"])) for f in raw.get("fu", [])],
                weight=float(raw.get("w", 1.0)),
                domain=path.stem,
            )
        )
    return topics


def model_topics(path: Path) -> list[Topic]:
    """Topics about each model of the catalogue, made from its facts; the other facts are follow-ups."""
    raw = yaml.safe_load(path.read_text())
    topics = []
    for name, facts in raw["models"].items():
        called = lines(facts["names"])
        replies = {key: answers(facts[key]) for key in raw["questions"] if key in facts}
        follow = [(lines(raw["pronouns"][key]), replies[key]) for key in replies]
        slug = name.lower().replace(" ", "-")
        for key, reply in replies.items():
            patterns = [p.replace("NAME", "{" + "|".join(called) + "}") for p in lines(raw["questions"][key])]
            others = [f for f, k in zip(follow, replies, strict=True) if k != key]
            topics.append(
                Topic(f"{slug}.{key}", [("ask", patterns)], reply, {"more": replies.get("about", reply)}, others,
                      float(facts.get("w", 1.0)) * (0.5 if key == "about" else 0.16), "models")
            )  # fmt: skip
    return topics


def _synonyms(groups: list[str]) -> dict[str, list[str]]:
    """Per line, the first word may become one of the others (not the other way round)."""
    table: dict[str, list[str]] = {}
    for group in groups:
        first, *others = (word.strip() for word in group.split(","))
        table.setdefault(first, []).extend(others)
    return table
