"""How quick the chat history is with many chats and messages.

    python benchmarks/history.py --messages 50000 --chats 10000

Fills a scratch database through the public API's own tables, then times what the app does: open, list, open a chat,
search as you type (each prefix of several queries), append to an answer, export. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from flashmoe.history import History
from flashmoe.history.exchange import to_json_text

WORDS = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which
    expert router layer token cache memory disk stream page kernel model budget prefill decode context attention
    quantisation weights graph thread batch hit miss bandwidth latency residency evict prefetch slot
""".split()  # noqa: SIM905


def words(rng: random.Random, n: int) -> str:
    """Text of `n` words, a few of them rare."""
    picked = rng.choices(WORDS, k=n)
    return " ".join(f"{w}{rng.randrange(5000)}" if rng.random() < 0.05 else w for w in picked)


def fill(path: Path, n_chats: int, n_messages: int, n_words: int) -> None:
    """Writes chats of equal length; one long chat gets 500 messages of them."""
    rng = random.Random(1)
    with History(path) as history, history.transaction() as db:
        now = time.time()
        db.executemany(
            "INSERT INTO chats (id, uid, title, created, updated) VALUES (?,?,?,?,?)",
            ((i, uuid.uuid4().hex, words(rng, 6), now - i * 60, now - i * 60) for i in range(1, n_chats + 1)),
        )
        each, more = divmod(max(n_messages - 500, 0), max(n_chats - 1, 1))
        lengths = [500] + [each + (i < more) for i in range(n_chats - 1)]
        message = 0
        for chat, length in enumerate(lengths, 1):
            parent = None
            for turn in range(length):
                message += 1
                db.execute(
                    "INSERT INTO messages (id, chat_id, parent_id, role, content, created) VALUES (?,?,?,?,?,?)",
                    (message, chat, parent, "assistant" if turn % 2 else "user", words(rng, n_words), now - chat * 60),
                )
                parent = message
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (parent, chat))
    print(f"{n_chats:,} chats, {message:,} messages of {n_words} words, {path.stat().st_size / 2**20:.0f} MiB\n")


def timed(name: str, run: Callable[[], object], repeat: int = 30) -> None:
    """Prints median and worst of `repeat` runs in ms."""
    took = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        took.append((time.perf_counter() - started) * 1e3)
    print(f"| {name} | {statistics.median(took):.2f} | {max(took):.2f} |")


def reopen(path: Path) -> None:
    """What a start of the app does."""
    with History(path) as history:
        history.chats(limit=100)


def main() -> None:
    """Fills a scratch database and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--words", type=int, default=80, help="words a message (default 80, about 500 bytes)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.db"
        fill(path, args.chats, args.messages, args.words)
        print("| what | median ms | worst ms |\n|---|---|---|")
        timed("open and list 100 chats", lambda: reopen(path))
        with History(path) as history:
            timed("list 200 chats", lambda: history.chats(limit=200))
            timed("open a chat of 500 messages", lambda: history.path(1), 10)
            timed("open a short chat", lambda: history.path(args.chats // 2))
            for query in ("the", "router bandw", "expert42", "nosuchword", "prefetch the slot"):
                typed = [query[: i + 1] for i in range(len(query))]
                for prefix in typed:
                    history.search(prefix)
                timed(f"search “{query}”, each letter", lambda typed=typed: [history.search(p) for p in typed], 5)
                timed(f"search “{query}”", lambda query=query: history.search(query), 10)
            timed("search 专家 (scripts without spaces)", lambda: history.search("专家"), 10)
            chat = history.create_chat()
            timed("add a message (fsync)", lambda: history.add_message(chat.id, "user", words(random.Random(2), 80)))
            writer = history.start_answer(chat.id)
            text = words(random.Random(3), 10)

            def append() -> None:
                writer.add(text)
                writer.flush()

            timed("flush an answer of up to 20 kB (fsync)", append, 300)
            timed("add a token (no disk)", lambda: writer.add(" a"), 1000)
            writer.finish("stop")
            timed("export 500 messages as JSON", lambda: to_json_text(history, [1]), 5)


if __name__ == "__main__":
    main()
