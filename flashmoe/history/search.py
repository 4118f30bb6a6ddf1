"""Search as you type: every word must be there, the last one may be unfinished; the newest match of each chat.

The index is asked in the order of message ids and read no further than needed, so that a search for "the" over
50,000 messages is as quick as one for a rare word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from flashmoe.history.base import HistoryBase, as_text
from flashmoe.history.records import Chat, Hit
from flashmoe.text_safety import encodable

MAX_SCANNED = 4000
"""Matches looked at before the list is shown as it is."""
STEP = 250
MAX_WORDS = 16
_MARK_IN, _MARK_OUT = "\x02", "\x03"

# Scripts written without spaces: the tokenizer sees a whole sentence as one word, so these are searched as substrings.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)


class SearchMixin(HistoryBase):
    """The search of `History`."""

    def search(self, text: str, *, limit: int = 50) -> list[Hit]:
        """Chats whose title or messages hold every word of `text`; titles first, then the newest. [] for no words."""
        words = _words(text)
        if not words:
            return []
        titles = self._title_hits(words, limit)
        found = {hit.chat.id: hit for hit in titles}
        for message_id, chat_id in self._message_ids(words, text):
            if len(found) >= limit:
                break
            known = found.get(chat_id)
            if known is not None and known.message_id is not None:
                continue
            chat = known.chat if known is not None else self._chat_of_hit(chat_id)
            if chat is not None:
                snippet, spans = self._snippet(message_id, words, text)
                found[chat_id] = Hit(chat=chat, message_id=message_id, snippet=snippet, spans=spans)
        return list(found.values())

    def _chat_of_hit(self, chat_id: int) -> Chat | None:
        chats = self._chats("WHERE c.id = ? AND c.deleted IS NULL", chat_id)
        return chats[0] if chats else None

    def _title_hits(self, words: list[str], limit: int) -> list[Hit]:
        if _UNSPACED.search("".join(words)):
            where = " AND ".join("c.title LIKE ? ESCAPE '\\'" for _ in words)
            values = [f"%{_escaped(word)}%" for word in words]
        else:
            where, values = "c.id IN (SELECT rowid FROM chats_fts WHERE chats_fts MATCH ?)", [_query(words)]
        chats = self._chats(
            f"WHERE c.deleted IS NULL AND {where} ORDER BY c.pinned DESC, c.updated DESC LIMIT ?", *values, limit
        )
        return [Hit(chat=chat) for chat in chats]

    def _message_ids(self, words: list[str], text: str) -> Iterator[tuple[int, int]]:
        """(message, chat) of matches, the newest first, read in small steps so that the caller may stop early."""
        below = 1 << 62
        for _ in range(MAX_SCANNED // STEP):
            rows = self._step(words, text, below)
            yield from rows
            if len(rows) < STEP:
                return
            below = rows[-1][0]

    def _step(self, words: list[str], text: str, below: int) -> list[tuple[int, int]]:
        if _UNSPACED.search(text):
            where = " AND ".join("content LIKE ? ESCAPE '\\'" for _ in words)
            values: list[object] = [f"%{_escaped(word)}%" for word in words]
            return self._rows(
                f"SELECT id, chat_id FROM messages WHERE id < ? AND status != 'streaming' AND {where} "
                "ORDER BY id DESC LIMIT ?",
                below, *values, STEP,
            )  # fmt: skip
        return self._rows(
            "SELECT m.id, m.chat_id FROM (SELECT rowid AS id FROM messages_fts WHERE messages_fts MATCH ? "
            "AND rowid < ? ORDER BY rowid DESC LIMIT ?) hit JOIN messages m ON m.id = hit.id ORDER BY m.id DESC",
            _query(words), below, STEP,
        )  # fmt: skip

    def _snippet(self, message_id: int, words: list[str], text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        if _UNSPACED.search(text):
            (row,) = self._rows("SELECT content FROM messages WHERE id = ?", message_id)
            return _cut(as_text(row[0]), words[0])
        rows = self._rows(
            "SELECT snippet(messages_fts, 0, ?, ?, '…', 14) FROM messages_fts WHERE messages_fts MATCH ? AND rowid = ?",
            _MARK_IN, _MARK_OUT, _query(words), message_id,
        )  # fmt: skip
        return _marked(rows[0][0]) if rows else ("", ())


def _words(text: str) -> list[str]:
    """The words of a search, at most `MAX_WORDS`; what has no letter or digit is no word to the index."""
    words = unicodedata.normalize("NFC", encodable(text).replace("\0", " ")).split()
    return [word for word in words if any(map(str.isalnum, word))][:MAX_WORDS]


def _query(words: list[str]) -> str:
    """An FTS5 query: each word quoted, so nothing typed is an operator; the last one as a prefix."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"


def _escaped(word: str) -> str:
    return re.sub(r"([%_\\])", r"\\\1", word)


def _marked(snippet: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A snippet of FTS5 as one line without marks, and where they were."""
    line = " ".join(snippet.split())
    plain, spans, start = "", [], 0
    for part in re.split(f"([{_MARK_IN}{_MARK_OUT}])", line):
        if part == _MARK_IN:
            start = len(plain)
        elif part == _MARK_OUT:
            spans.append((start, len(plain)))
        else:
            plain += part
    return plain, tuple(spans)


def _cut(content: str, word: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Text around the first place of a word, one line."""
    line = " ".join(content.split())
    at = line.casefold().find(word.casefold())
    if at < 0:
        return line[:80], ()
    first = max(at - 30, 0)
    lead = "…" if first else ""
    cut = lead + line[first : at + 60] + ("…" if at + 60 < len(line) else "")
    start = len(lead) + at - first
    return cut, ((start, start + len(word)),)
