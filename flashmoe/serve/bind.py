"""The listening socket, bound before the model loads: a taken port is told at once, not after minutes."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket for `host` (a name or an address). Raises OSError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as e:
        raise OSError(e.errno, f"{host} is not an address of this machine") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
