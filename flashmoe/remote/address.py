"""A server's address: as it may be shown, never with the user name and password that it may hold; and whose it is."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

_PORTS = {"http": 80, "https": 443}


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # http://[
        return SplitResult("", "", "", "", "")


def host_of(url: str) -> str:
    """``host:port``."""
    return _parts(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """The address without a user name, a password or a query."""
    parts = _parts(url)
    return f"{parts.scheme}://{host_of(url)}{parts.path}"


def origin_of(url: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an http(s) address; None where it is none."""
    parts = _parts(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # no number, or beyond 65535
        return None
    return (parts.scheme, parts.hostname, port) if parts.scheme in _PORTS and parts.hostname and port else None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself: ``localhost``, or an address of its loopback device."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
