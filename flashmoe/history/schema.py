"""The database's schema: one migration a version, kept by ``PRAGMA user_version``.

Full-text search reads its text from the tables themselves (external content), so nothing is stored twice. A message
enters the index when it stops streaming: an index entry a flush would cost as much as the whole answer each time.
"""

from __future__ import annotations

import sqlite3

from flashmoe.history.records import HistoryError

_VERSION_1 = """
CREATE TABLE chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    updated REAL NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    deleted REAL,
    model TEXT NOT NULL DEFAULT '',
    model_path TEXT NOT NULL DEFAULT '',
    settings TEXT NOT NULL DEFAULT '{}',
    draft TEXT NOT NULL DEFAULT '',
    leaf INTEGER
);
CREATE INDEX chats_listed ON chats (deleted, pinned DESC, updated DESC);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    thinking TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    status TEXT NOT NULL DEFAULT 'done',
    finish_reason TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    figures TEXT,
    attachments TEXT NOT NULL DEFAULT '[]',
    last_leaf INTEGER,
    owner TEXT
);
CREATE INDEX messages_of_chat ON messages (chat_id, parent_id);
CREATE INDEX messages_of_parent ON messages (parent_id);
CREATE INDEX messages_streaming ON messages (owner) WHERE status = 'streaming';
CREATE INDEX messages_asked ON messages (id) WHERE role = 'user';

CREATE VIRTUAL TABLE messages_fts USING fts5 (
    content, content='messages', content_rowid='id', tokenize='unicode61 remove_diacritics 2', prefix='1 2 3 4 5'
);
CREATE VIRTUAL TABLE chats_fts USING fts5 (
    title, content='chats', content_rowid='id', tokenize='unicode61 remove_diacritics 2', prefix='1 2 3 4 5'
);
CREATE TRIGGER messages_in AFTER INSERT ON messages WHEN new.status != 'streaming' BEGIN
    INSERT INTO messages_fts (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER messages_out AFTER DELETE ON messages WHEN old.status != 'streaming' BEGIN
    INSERT INTO messages_fts (messages_fts, rowid, content) VALUES ('delete', old.id, old.content);
END;
CREATE TRIGGER messages_changed AFTER UPDATE OF content, status ON messages
WHEN old.status != 'streaming' AND new.status != 'streaming' BEGIN
    INSERT INTO messages_fts (messages_fts, rowid, content) VALUES ('delete', old.id, old.content);
    INSERT INTO messages_fts (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER messages_ended AFTER UPDATE OF status ON messages
WHEN old.status = 'streaming' AND new.status != 'streaming' BEGIN
    INSERT INTO messages_fts (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER messages_continued AFTER UPDATE OF status ON messages
WHEN old.status != 'streaming' AND new.status = 'streaming' BEGIN
    INSERT INTO messages_fts (messages_fts, rowid, content) VALUES ('delete', old.id, old.content);
END;
CREATE TRIGGER chats_in AFTER INSERT ON chats BEGIN
    INSERT INTO chats_fts (rowid, title) VALUES (new.id, new.title);
END;
CREATE TRIGGER chats_out AFTER DELETE ON chats BEGIN
    INSERT INTO chats_fts (chats_fts, rowid, title) VALUES ('delete', old.id, old.title);
END;
CREATE TRIGGER chats_changed AFTER UPDATE OF title ON chats BEGIN
    INSERT INTO chats_fts (chats_fts, rowid, title) VALUES ('delete', old.id, old.title);
    INSERT INTO chats_fts (rowid, title) VALUES (new.id, new.title);
END;
"""

# What a branch's context no longer holds (`flashmoe.history.cuts`).
_VERSION_2 = """
CREATE TABLE context_cuts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    upto_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    summary TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL
);
CREATE INDEX context_cuts_of_message ON context_cuts (message_id);
CREATE INDEX context_cuts_upto ON context_cuts (upto_id);
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2)
"""Entry N brings version N to N + 1. Never change one that was released: add another."""


def migrate(db: sqlite3.Connection, name: str) -> None:
    """Brings the database up to date, in one transaction that a second instance waits for."""
    newest = len(MIGRATIONS)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == newest:
        return
    if version > newest:
        raise HistoryError(f"{name} was written by a newer flashmoe-tui", "update it to see these chats.")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()  # another instance may have been faster
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {newest}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """A script's statements; `executescript` would commit the transaction that protects them."""
    statements, current = [], ""
    for line in script.splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
