"""What is known of how a model writes: `ChatFormat`, learnt from its template (`learn`) or found in a table
(`families`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

CallKind = Literal[
    "none",  # the template knows no tools
    "json",  # {"name": …, "arguments": {…}}, alone or in a list
    "named",  # the name between markers, then the arguments as JSON
    "tagged",  # the name between markers, then each argument between markers of its own
    "python",  # [name(key=value)]
    "gemma",  # call:name{key:<|"|>text<|"|>}
    "minimax",  # tags within tags, each after a marker
]
Protocol = Literal["tags", "harmony", "recipients", "kimi3", "functionary"]
"""How an answer is laid out: thinking, text and calls between tags of their own, or messages with a head that says what
they are."""


PROTOCOL_MARKERS: dict[str, tuple[str, ...]] = {
    "tags": (),
    "harmony": (
        "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>",
    ),
    "recipients": ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
    "kimi3": ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
    "functionary": (">>>",),
}  # fmt: skip


KNOWN_TAGS = (
    ("<think>", "</think>"), ("<seed:think>", "</seed:think>"), ("<mm:think>", "</mm:think>"),
    ("[THINK]", "[/THINK]"), ("<reasoning>", "</reasoning>"), ("<thinking>", "</thinking>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|inner_prefix|>", "<|inner_suffix|>"), ("◁think▷", "◁/think▷"),
    ("<|think|>", "<|/think|>"), ("<thought>", "</thought>"), ("<|channel>thought", "<channel|>"),
)  # fmt: skip
"""Where nothing could be learnt: a model may write them first all the same, and then they count."""


@dataclass(frozen=True)
class Thinking:
    """The tags around thinking, each as pieces with white space allowed between them."""

    start: str
    end: str
    after: tuple[str, ...] = ()
    """Pieces that follow the end before the answer's text, each of them optional."""
    control: bool = False
    """The tags are of a form that text doesn't have, so they count anywhere in an answer."""


@dataclass(frozen=True)
class Calls:
    """How tool calls are written. Markers are pieces with white space allowed between them."""

    kind: CallKind = "none"
    section: tuple[str, ...] = ()
    """Before the first call."""
    start: tuple[str, ...] = ()
    """Before the name (json: before the JSON)."""
    name_end: tuple[str, ...] = ()
    """Between the name and the arguments."""
    id_start: tuple[str, ...] = ()
    """named: before an id that stands between the name and the arguments."""
    name_start: tuple[str, ...] = ()
    """named: between an id that comes first and the name."""
    id_is_name: bool = False
    """named: what stands where the name is expected is an id such as ``functions.name:0``."""
    key_start: tuple[str, ...] = ()
    key_end: tuple[str, ...] = ()
    value_end: tuple[str, ...] = ()
    value_lead: str = ""
    """White space that the template puts before a value and after it: not part of the value."""
    value_trail: str = ""
    string_flag: bool = False
    """tagged: after its name a parameter has ``string="true"``, where it is text as it stands, or ``"false"``."""
    end: tuple[str, ...] = ()
    """After a call, each piece optional."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    id_key: str = "id"
    in_list: bool = False
    """json: the calls stand in a list."""
    name_is_key: bool = False
    """json: {name: {arguments}}."""
    arguments_as_text: bool = False
    """The template wants a call's arguments as JSON text instead of as a mapping."""
    id_style: str = ""
    """What an id must look like for the template: ``{name}`` and ``{index}`` are filled in; '' takes any."""


@dataclass(frozen=True)
class ChatFormat:
    """How a model writes its answers."""

    protocol: Protocol = "tags"
    thinking: Thinking | None = None
    calls: Calls = field(default_factory=Calls)
    opener: tuple[str, ...] = ()
    """Pieces that open an answer: the template writes them, so a model that repeats them is not quoted."""
    wrapper: tuple[str, ...] = ()
    """Pieces before an answer's text."""
    ends: tuple[str, ...] = ()
    """Pieces that end a turn or an answer's text: never shown."""
    answer_head: str = ""
    """What the template writes before an answer in the history, and after it."""
    answer_end: str = ""
    switch: str = ""
    """The template's name for the switch of thinking (``enable_thinking``, ``thinking``); '' where there is none."""
    effort: str = ""
    """The template's name for how much to think (``reasoning_effort``)."""
    thinks_by_default: bool = False
    """Whether the template asks for thinking when nothing is said, as far as it shows."""
    system: Literal["yes", "merge"] = "yes"
    """merge: the template drops or refuses a system message."""
    developer: bool = False
    """The template has a place for a developer's message: else it is a system message."""
    calls_in_text: bool = False
    """The template knows no tools: they are told in the system message, and calls and results are texts."""
    tools_in_text: bool = False
    """The template writes calls, but doesn't say which tools there are: the system message does."""
    calls_left_out: bool = False
    """The template leaves calls out of the history: they stand in the messages' texts."""
    single_calls: bool = False
    """The template knows one call at a time: several are told one after the other, each with its result."""
    null_content: bool = False
    """The template writes a message's calls only where it has no content at all."""
    learnt: str = "plain"
    """Where this comes from: ``template``, ``family:NAME`` or ``plain`` (nothing could be learnt)."""

    @property
    def can_think(self) -> bool:
        """Whether the template has a switch for thinking, or tags for it."""
        return bool(self.thinking or self.switch or self.protocol in ("harmony", "recipients", "kimi3"))

    def markers(self) -> tuple[str, ...]:
        """Every text that a parser of this format looks for."""
        calls = self.calls
        found = [*self.opener, *self.wrapper, *self.ends, *PROTOCOL_MARKERS[self.protocol]]
        if self.thinking:
            found += [self.thinking.start, self.thinking.end, *self.thinking.after]
        else:
            found += [tag for tags in KNOWN_TAGS for tag in tags]
        for pieces in (calls.section, calls.start, calls.name_start, calls.name_end, calls.id_start, calls.key_start):
            found += pieces
        for pieces in (calls.key_end, calls.value_end, calls.end):
            found += pieces
        if calls.kind == "gemma":
            found.append('<|"|>')
        return tuple(dict.fromkeys(p for p in found if p))

    def told(self) -> dict[str, Any]:
        """What was learnt, for people."""
        told: dict[str, Any] = {"learnt": self.learnt, "protocol": self.protocol}
        if self.thinking:
            told["thinking"] = [self.thinking.start, self.thinking.end]
        if self.switch:
            told["thinking_switch"] = self.switch
        if self.effort:
            told["thinking_effort"] = self.effort
        if self.calls.kind != "none":
            calls = self.calls
            told["tool_calls"] = {
                k: v if isinstance(v, str | bool) else " ".join(v)
                for k in (
                    "kind",
                    "section",
                    "start",
                    "name_end",
                    "id_start",
                    "key_start",
                    "key_end",
                    "value_end",
                    "end",
                    "name_start",
                    "id_is_name",
                    "in_list",
                    "name_is_key",
                )
                if (v := getattr(calls, k))
            }
            if calls.kind == "json" and not calls.name_is_key:
                told["tool_calls"]["keys"] = [calls.name_key, calls.arguments_key]
        if self.wrapper:
            told["text_start"] = " ".join(self.wrapper)
        if self.ends:
            told["ends"] = list(self.ends)
        if self.system == "merge":
            told["system"] = "goes into the first user message"
        return told


_PIECE = re.compile(
    r"\[e~\[|\]~[!b]\[|\]~b\]\w*"  # MiniMax's
    r"|"
    r"<[^<>\s\]]*(?:\s[\w:.-]+=\"?)?[^<>\s]*>"  # a whole tag, perhaps with the start of an attribute
    r"|<[^<>\s]*(?:\s[\w:.-]+=\"?)?"  # a tag that a name goes on with
    r"|\[[A-Z_/]+(?: [A-Z_]+)*\]"  # [TOOL_CALLS]
    r"|[^\s<\[]+|\["
)


def split_pieces(text: str) -> tuple[str, ...]:
    """A marker's pieces: tags, and words between white space."""
    return tuple(_PIECE.findall(text))


def distinctive(piece: str) -> bool:
    """Whether a piece can't be ordinary text: a tag, a word in brackets, or the like."""
    return len(piece) >= 3 and bool(re.search(r"^[<\[◁]|^\]<\]|^```|^functools$|:$|[▁｜|]", piece))


_CONTROL = re.compile(r"<[|｜][^<>]*>|\[e~\[|<[^<>]*[|｜]>|\[/?[A-Z_]{3,}\]|◁[^▷]*▷|</s>|<s>|<\w+_of_\w+>|<\w+:\w+>")


def control_like(piece: str) -> bool:
    """Whether a piece has the form of a control token, which nobody writes as text."""
    return _CONTROL.fullmatch(piece) is not None
