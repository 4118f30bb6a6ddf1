"""Chats as files: Markdown to read, JSON to keep and to bring back with every branch."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from flashmoe.failures import keep, told
from flashmoe.figures import day_and_time
from flashmoe.history.base import to_json
from flashmoe.history.records import LATEST, Attachment, Chat, ChatSettings, ContextCut, Figures, HistoryError, Message
from flashmoe.history.store import History
from flashmoe.text_safety import encodable, visible_line

T = TypeVar("T")

FORMAT = "flashmoe-chats"
VERSION = 1
MAX_IMPORT_BYTES = 256 << 20
MAX_CHATS, MAX_MESSAGES = 100_000, 1_000_000
_ROLE = re.compile(r"[a-z][a-z_]{0,31}")

ROLE_NAMES = {"user": "You", "assistant": "Assistant", "system": "System"}


class _ExportedMessage(Struct, kw_only=True, omit_defaults=True):
    """`parent` is the index of another message of the same chat; None is the top."""

    role: Annotated[str, Meta(max_length=32)]
    content: str
    parent: int | None = None
    thinking: str = ""
    created: float = 0.0
    status: str = "done"
    finish_reason: str = ""
    model: str = ""
    figures: Figures | None = None
    attachments: tuple[Attachment, ...] = ()


class _ExportedCut(Struct, kw_only=True, omit_defaults=True):
    """A `ContextCut`; `message` and `upto` are indexes of messages of the same chat."""

    message: int
    upto: int
    summary: str = ""
    model: str = ""


class _ExportedChat(Struct, kw_only=True, omit_defaults=True):
    title: str = ""
    uid: str = ""
    created: float = 0.0
    updated: float = 0.0
    pinned: bool = False
    model: str = ""
    settings: ChatSettings = ChatSettings()
    leaf: int | None = None
    messages: list[_ExportedMessage] = field(default_factory=list)
    cuts: Annotated[list[_ExportedCut], Meta(max_length=1000)] = field(default_factory=list)


class _File(Struct, kw_only=True):
    format: str
    version: int
    chats: list[_ExportedChat]


# ---- export ----------------------------------------------------------------------------------------------------


def to_markdown(history: History, chat_id: int, *, thinking: bool = True) -> str:
    """The branch of a chat that is shown, as Markdown."""
    chat = history.chat(chat_id)
    lines = [f"# {visible_line(chat.title) or 'Untitled chat'}", ""]
    about = [f"Started {day_and_time(chat.created)}"]
    if chat.model:
        about.append(f"model {visible_line(chat.model)}")
    lines += [", ".join(about) + ".", ""]
    if chat.settings.system_prompt:
        lines += ["## System prompt", "", chat.settings.system_prompt, ""]
    cut = history.context_cut(chat.leaf)
    for message in history.path(chat_id):
        lines += _message_lines(message, thinking)
        if cut is not None and message.id == cut.upto_id:
            lines += _cut_lines(cut)
    return "\n".join(lines).rstrip() + "\n"


def _message_lines(message: Message, thinking: bool) -> Iterator[str]:
    name = ROLE_NAMES.get(message.role, message.role)
    if message.role == "assistant" and message.model:
        name = visible_line(message.model)
    yield f"## {name}"
    yield ""
    for attachment in message.attachments:
        fence = _fence(attachment.text)
        yield f"Attached: `{visible_line(attachment.name)}`"
        yield from ("", fence, attachment.text.rstrip("\n"), fence, "")
    if thinking and message.thinking.strip():
        yield from ("<details><summary>Thinking</summary>", "", message.thinking.strip(), "", "</details>", "")
    yield message.content.strip()
    yield ""
    notes = []
    if message.variants > 1:
        notes.append(f"variant {message.variant} of {message.variants}")
    if message.status == "partial":
        notes.append("cut short")
    figures = message.figures
    if figures is not None:
        if figures.completion_tokens:
            notes.append(f"{figures.completion_tokens} tokens")
        if figures.tok_s:
            notes.append(f"{figures.tok_s:.1f} tok/s")
        if figures.hit_rate is not None:
            notes.append(f"{figures.hit_rate:.0%} of experts in RAM")
    if notes:
        yield f"*{', '.join(notes)}*"
        yield ""


def _cut_lines(cut: ContextCut) -> Iterator[str]:
    yield from ("---", "")
    if not cut.summary:
        yield from ("*The context was full: below this line the model was not shown the messages above it.*", "")
        return
    yield from ("*The context was full: below this line the model was shown this summary of the messages above:*", "")
    yield from ("\n".join(f"> {line}".rstrip() for line in cut.summary.strip().split("\n")), "")


def _fence(text: str) -> str:
    """A code fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence


def to_markdown_text(
    history: History, chat_ids: Iterable[int], problems: list[str] | None = None, *, thinking: bool = True
) -> str:
    """Several chats, one after another; `problems` as for `to_json_text`."""
    texts = _each(history, chat_ids, problems, lambda chat_id: to_markdown(history, chat_id, thinking=thinking))
    return "\n".join(texts)


def to_json_text(history: History, chat_ids: Iterable[int], problems: list[str] | None = None) -> str:
    """Chats with every branch, setting and figure, as JSON that `import_json` reads.

    `problems` gets a sentence for each chat that is damaged, and the others are written all the same; without it the
    first that can't be read raises `HistoryError`.
    """
    chats = _each(history, chat_ids, problems, lambda chat_id: _exported(history, history.chat(chat_id)))
    text = to_json(_File(format=FORMAT, version=VERSION, chats=chats))
    return msgspec.json.format(text, indent=2) + "\n"


def _each(history: History, chat_ids: Iterable[int], problems: list[str] | None, make: Callable[[int], T]) -> list[T]:
    made = []
    for chat_id in chat_ids:
        try:
            made.append(make(chat_id))
            lost = history.misplaced(chat_id) if problems is not None else 0
        except Exception as error:
            if problems is None:
                raise
            if not isinstance(error, HistoryError):
                keep(error)
            problems.append(f"Chat {chat_id} can't be exported: {told(error)}")
            continue
        if lost and problems is not None:
            which = "a message has" if lost == 1 else f"{lost} messages have"
            problems.append(f"Chat {chat_id} is damaged: {which} no place in it; each begins a branch of its own.")
    return made


def _exported(history: History, chat: Chat) -> _ExportedChat:
    messages = history.all_messages(chat.id)
    index = {message.id: i for i, message in enumerate(messages)}
    return _ExportedChat(
        title=chat.title, uid=chat.uid, created=chat.created, updated=chat.updated, pinned=chat.pinned,
        model=chat.model, settings=chat.settings, leaf=index.get(chat.leaf) if chat.leaf is not None else None,
        messages=[
            _ExportedMessage(
                role=m.role, content=m.content, thinking=m.thinking, created=m.created,
                parent=above if (above := index.get(m.parent_id or 0)) is not None and above < index[m.id] else None,
                status="partial" if m.status == "streaming" else m.status, finish_reason=m.finish_reason,
                model=m.model, figures=m.figures, attachments=m.attachments,
            )
            for m in messages
        ],
        cuts=[
            _ExportedCut(message=index[cut.message_id], upto=index[cut.upto_id], summary=cut.summary, model=cut.model)
            for cut in history.cuts_of(chat.id)
            if cut.message_id in index and index.get(cut.upto_id, len(index)) <= index[cut.message_id]
        ],
    )  # fmt: skip


# ---- import ----------------------------------------------------------------------------------------------------


def import_json(history: History, text: str | bytes) -> list[Chat]:
    """Adds the chats of an export; a chat that is here already (by its uid) is left as it is and not returned.

    A plain list of ``{"role", "content"}``, or one under ``messages``, becomes one chat. All or nothing.
    """
    if len(text) > MAX_IMPORT_BYTES:
        raise HistoryError("The file is larger than 256 MiB, which is more than an import takes", "split it.")
    chats = _decode(text)
    added = []
    with history.transaction() as db:
        for chat in chats:
            row = db.execute("SELECT deleted FROM chats WHERE uid = ?", (chat.uid,)).fetchone() if chat.uid else None
            if row is None:
                added.append(_insert(history, chat))
    return [history.chat(chat_id) for chat_id in added]


def _decode(text: str | bytes) -> list[_ExportedChat]:
    try:
        data: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise HistoryError(f"The file is not valid JSON ({error}).") from None
    try:
        if isinstance(data, list):
            return [msgspec.convert({"messages": _chained(data)}, _ExportedChat)]
        if isinstance(data, dict) and "format" not in data and isinstance(data.get("messages"), list):
            title = data["title"] if isinstance(data.get("title"), str) else ""
            return [msgspec.convert({"title": title, "messages": _chained(data["messages"])}, _ExportedChat)]
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise HistoryError(
                "The file is neither a flashmoe-tui export nor a list of messages with role and content."
            )
        if data.get("version", 0) != VERSION:
            raise HistoryError("The export was written by a newer flashmoe-tui", "update it to import the file.")
        chats = msgspec.convert(data, _File).chats
    except (msgspec.ValidationError, TypeError) as error:
        raise HistoryError(f"The export is damaged: {error}.") from None
    if len(chats) > MAX_CHATS or sum(len(chat.messages) for chat in chats) > MAX_MESSAGES:
        raise HistoryError(f"The file holds more than {MAX_CHATS:,} chats or {MAX_MESSAGES:,} messages", "split it.")
    for chat in chats:
        _check_values(chat)
        for i, message in enumerate(chat.messages):
            if message.parent is not None and not 0 <= message.parent < i:
                raise HistoryError(f"The export is damaged: message {i} of {chat.title[:40]!r} has no valid parent.")
        if chat.leaf is not None and not 0 <= chat.leaf < len(chat.messages):
            raise HistoryError(f"The export is damaged: {chat.title[:40]!r} has no valid last message.")
        if not all(_is_cut(cut, chat.messages) for cut in chat.cuts):
            raise HistoryError(f"The export is damaged: {chat.title[:40]!r} leaves out messages that it doesn't have.")
    return chats


def _check_values(chat: _ExportedChat) -> None:
    """That every figure can be shown and stored: what is refused here would be stored, and then end a listing."""

    def refuse(what: str) -> HistoryError:
        return HistoryError(f"The export is damaged: {visible_line(chat.title, 40) or 'a chat'!r} has {what}.")

    for moment in (chat.created, chat.updated, *(message.created for message in chat.messages)):
        if not 0 <= moment <= LATEST:  # false for NaN too
            raise refuse(f"the date {moment:g}")
    if len(chat.uid) > 128:
        raise refuse("an identifier of more than 128 characters")
    if chat.settings.n_ctx is not None and not 0 < chat.settings.n_ctx < 1 << 31:
        raise refuse(f"a context of {chat.settings.n_ctx} tokens")
    for message in chat.messages:
        if not _ROLE.fullmatch(message.role):
            raise refuse(f"a message of the role {visible_line(message.role, 40)!r}")


def _is_cut(cut: _ExportedCut, messages: list[_ExportedMessage]) -> bool:
    """Whether `upto` lies on the way from the top to `message`. Parents come before their children here."""
    if not 0 <= cut.upto <= cut.message < len(messages):
        return False
    at: int | None = cut.message
    while at is not None and at > cut.upto:
        at = messages[at].parent
    return at == cut.upto


def _chained(messages: list[Any]) -> list[Any]:
    """A plain list of messages, each below the one before it."""
    chained = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise HistoryError(f"Message {i + 1} of the file is not an object with role and content.")
        entry = {"role": message.get("role"), "content": message.get("content")}
        chained.append({**entry, "parent": i - 1 if i else None})
    return chained


def _insert(history: History, chat: _ExportedChat) -> int:
    moment = time.time()
    first = next((m.content for m in chat.messages if m.role == "user"), "")
    with history.transaction() as db:
        chat_id = history.create_chat(title=chat.title or first, model=chat.model, settings=chat.settings).id
        ids: list[int] = []
        for m in chat.messages:
            cursor = db.execute(
                "INSERT INTO messages (chat_id, parent_id, role, content, thinking, created, status, finish_reason, "
                "model, figures, attachments) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (chat_id, None if m.parent is None else ids[m.parent], m.role, encodable(m.content),
                 encodable(m.thinking), m.created or moment, "partial" if m.status == "partial" else "done",
                 m.finish_reason, m.model, to_json(m.figures) if m.figures is not None else None,
                 to_json(m.attachments)),
            )  # fmt: skip
            ids.append(cursor.lastrowid or 0)
        for cut in chat.cuts:
            history.cut_context(ids[cut.message], ids[cut.upto], summary=cut.summary, model=cut.model)
        leaf = ids[chat.leaf] if chat.leaf is not None else (ids[-1] if ids else None)
        db.execute(
            "UPDATE chats SET uid = ?, created = ?, updated = ?, pinned = ?, leaf = ? WHERE id = ?",
            (chat.uid or uuid.uuid4().hex, chat.created or moment, chat.updated or moment, int(chat.pinned), leaf,
             chat_id),
        )  # fmt: skip
    return chat_id
