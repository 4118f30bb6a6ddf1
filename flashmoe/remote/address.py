"""A server's address as it may be shown: never with the user name and password that it may hold."""

from __future__ import annotations

from urllib.parse import urlsplit


def host_of(url: str) -> str:
    """``host:port``."""
    return urlsplit(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """The address without a user name, a password or a query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"
