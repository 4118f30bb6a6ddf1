"""The chat that is shown: one path through the history's tree of messages, and what the engine is given of it.

The history (`flashmoe.history`) owns chats and branches; a `Turn` is one of its messages while it is on the screen.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from backends.interface import ChatMessage
from flashmoe.history.records import Attachment, ChatSettings, ContextCut, Figures, Message


@dataclass(eq=False)
class Turn:
    """One message on the shown path."""

    role: str
    content: str = ""
    thinking: str = ""
    id: int = 0
    """Its id in the history."""
    parent_id: int | None = None
    ending: str = ""
    """Why an answer ended (`Message.finish_reason`); empty while it is being written, and for questions."""
    error: str = ""
    """One sentence where it failed; only while the app runs."""
    model: str = ""
    figures: Figures | None = None
    attachments: tuple[Attachment, ...] = ()
    variant: int = 1
    variants: int = 1
    dropped: bool = False
    """Left out of the context by the user's choice (`Conversation.cut`); still shown and kept."""

    @classmethod
    def of(cls, message: Message) -> Turn:
        """A message of the history; an answer whose writing was cut off counts as stopped."""
        ending = message.finish_reason
        if message.status == "streaming":
            ending = ""
        elif not ending:
            ending = "died" if message.status == "partial" else "stop"
        return cls(
            role=message.role,
            content=message.content,
            thinking=message.thinking,
            id=message.id,
            parent_id=message.parent_id,
            ending=ending if message.role == "assistant" else "",
            model=message.model,
            figures=message.figures,
            attachments=message.attachments,
            variant=message.variant,
            variants=message.variants,
        )

    @property
    def writing(self) -> bool:
        """Whether it is an answer that is still being written."""
        return self.role == "assistant" and not self.ending

    @property
    def prompt_text(self) -> str:
        """What the model is given: the attachments, each below its name and safely fenced, then the content."""
        parts: list[str] = []
        for attachment in self.attachments:
            fence = "```"
            while fence in attachment.text:
                fence += "`"
            parts.append(f"File {attachment.name}:\n{fence}\n{attachment.text.rstrip()}\n{fence}\n\n")
        return "".join(parts) + self.content


@dataclass
class Conversation:
    """One chat: its place in the history, its settings, and the turns on the shown path, oldest first."""

    id: int | None = None
    """None until the first question: empty chats are not kept."""
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The engine's session, so that its KV cache is reused; the chat's uid once it is kept."""
    title: str = ""
    settings: ChatSettings = field(default_factory=ChatSettings)
    turns: list[Turn] = field(default_factory=list)
    cut: ContextCut | None = None
    """What the model isn't shown of this path, as the history has it; see `take_cut`."""

    @property
    def summary(self) -> str:
        """Stands in for turns that were left out of the context, where the user chose a summary."""
        return self.cut.summary if self.cut is not None else ""

    @property
    def dropped(self) -> list[Turn]:
        """The turns that the model isn't shown, oldest first."""
        return [turn for turn in self.turns if turn.dropped]

    def last_of(self, role: str) -> Turn | None:
        """The last turn of a role."""
        return next((turn for turn in reversed(self.turns) if turn.role == role), None)

    def nearest_branching(self) -> Turn | None:
        """The last turn that has alternatives."""
        return next((turn for turn in reversed(self.turns) if turn.variants > 1), None)

    def question_of(self, turn: Turn) -> Turn | None:
        """The question before an answer (or the turn itself where it is a question)."""
        index = self.turns.index(turn)
        return next((t for t in reversed(self.turns[: index + 1]) if t.role == "user"), None)

    def replace_path(self, messages: list[Message]) -> None:
        """Takes a path of the history; turns that are on it already stay the same objects, with their widgets."""
        known = {turn.id: turn for turn in self.turns}
        turns: list[Turn] = []
        for message in messages:
            turn = known.get(message.id)
            if turn is None:
                turn = Turn.of(message)
            else:
                turn.variant, turn.variants = message.variant, message.variants
            turns.append(turn)
        self.turns = turns

    def take_cut(self, cut: ContextCut | None) -> None:
        """Puts a cut in force on the shown path; None shows the model everything."""
        upto = next((i for i, turn in enumerate(self.turns) if cut is not None and turn.id == cut.upto_id), -1)
        self.cut = cut if upto >= 0 else None
        for index, turn in enumerate(self.turns):
            turn.dropped = index <= upto

    # ---- what the engine gets -------------------------------------------------------------------------------------

    def messages(self, upto: Turn | None = None, *, system_prompt: str = "") -> tuple[ChatMessage, ...]:
        """The prompt: system prompt, summary, then the path up to and with `upto`, less what was left out."""
        system = self._system(system_prompt)
        return self._messages([turn for turn in self.turns if not turn.dropped], upto, system)

    def to_summarise(self, turns: list[Turn], instruction: str, *, system_prompt: str = "") -> tuple[ChatMessage, ...]:
        """A prompt for a summary of `turns`. It begins as the chat's own prompt does, so that what the engine has
        computed of the chat needn't be computed again."""
        asked = Turn("user", instruction)
        return self._messages([*turns, asked], None, self._system(system_prompt))

    def _system(self, system_prompt: str) -> str:
        system = system_prompt.strip()
        if self.summary:
            system = f"{system}\n\nSummary of the conversation so far: {self.summary}".strip()
        return system

    @staticmethod
    def _messages(turns: list[Turn], upto: Turn | None, system: str) -> tuple[ChatMessage, ...]:
        result = [ChatMessage("system", system)] if system else []
        for turn in turns:
            if turn.role == "user" or turn.content or (turn is upto and turn.thinking):
                result.append(ChatMessage(turn.role, turn.prompt_text, turn.thinking if turn is upto else ""))
            if turn is upto:
                break
        return tuple(_merged(result))

    def oldest(self, keep_tokens: int, count: int) -> list[Turn]:
        """The oldest turns that must go until about `keep_tokens` of `count` prompt tokens remain; none is changed.

        The last question always stays; a turn's tokens are estimated from its share of the characters.
        """
        kept = [turn for turn in self.turns if not turn.dropped]
        per_char = count / (sum(len(turn.prompt_text) for turn in kept) or 1)
        leaving: list[Turn] = []
        left = float(count)
        last_question = self.last_of("user")
        while left > keep_tokens and kept and kept[0] is not last_question:
            turn = kept.pop(0)
            leaving.append(turn)
            left -= len(turn.prompt_text) * per_char
        while kept and kept[0].role == "assistant":  # a context may not begin with half an exchange
            leaving.append(kept.pop(0))
        return leaving

    def question_tokens(self, count: int) -> int:
        """About how many of `count` prompt tokens are the last question's: nothing that is left out makes it less."""
        kept = [turn for turn in self.turns if not turn.dropped]
        chars = sum(len(turn.prompt_text) for turn in kept)
        question = self.last_of("user")
        return round(count * len(question.prompt_text) / chars) if question in kept and question and chars else 0

    def cut_place(self, going_on: Turn | None) -> Turn | None:
        """Where a cut made now belongs: the last turn before the last question, so that asking that question in other
        words needs no new choice. For an answer that goes on it is that answer."""
        if going_on is not None:
            return going_on
        question = self.last_of("user")
        index = self.turns.index(question) if question is not None else 0
        return self.turns[index - 1] if index else None


def _merged(messages: list[ChatMessage]) -> Iterator[ChatMessage]:
    """Joins neighbouring questions: templates refuse two user messages in a row (after a failed answer)."""
    held: ChatMessage | None = None
    for message in messages:
        if held is not None and held.role == message.role == "user":
            held = ChatMessage("user", f"{held.content}\n\n{message.content}")
            continue
        if held is not None:
            yield held
        held = message
    if held is not None:
        yield held
