"""Files that the hub stores by xet, fetched by huggingface_hub's own hf_xet: ranges of them, as streams.

Used where hf_xet is installed (huggingface_hub brings it on most machines), the hub names a file's xet hash, and
neither HF_HUB_DISABLE_XET nor the configuration forbids it. The token for the storage comes from the hub's own host,
and only that token goes to the storage. What comes is stored, resumed and verified like any other byte.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flashmoe.hub.client import hf
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show

if TYPE_CHECKING:
    from flashmoe.hub.client import HubClient, XetPlace


def why_not() -> str | None:
    """Why xet isn't used on this machine: a few words; None where it is."""
    if os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_DISABLE_XET is set"
    return None if find_spec("hf_xet") is not None else "hf_xet isn't installed"


class XetStream:
    """One range of a file: an iterator of its bytes in order."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except Exception as error:  # the extension's own classes, and OSError
            raise _trouble(error) from None

    def cancel(self) -> None:
        """Makes whoever iterates return soon."""
        self._stream.cancel()


class XetStorage:
    """Opens ranges of files; one group of connections for each repository's token. Thread-safe."""

    def __init__(self, client: HubClient) -> None:
        self._client = client
        self._groups: dict[str, Any] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open_range(self, place: XetPlace, size: int, start: int, end: int) -> Iterator[XetStream]:
        """Bytes [start, end) of a file of `size` bytes. Raises `HubError`."""
        import hf_xet

        try:
            group: Any = self._group(place.token_url)
            stream = group.download_stream(hf_xet.XetFileInfo(place.hash, size), start=start, end=end)
        except HubError:
            raise
        except Exception as error:
            with self._lock:
                self._groups.pop(place.token_url, None)
            raise _trouble(error) from None
        opened = XetStream(stream)
        try:
            yield opened
        finally:
            opened.cancel()

    def _group(self, token_url: str) -> Any:
        from huggingface_hub.utils._xet import (
            XetFileData,
            get_xet_session,
            refresh_xet_connection_info,
            xet_headers_without_auth,
        )

        with self._lock:
            group = self._groups.get(token_url)
            if group is None:
                hf()
                headers = self._client.headers()
                info = refresh_xet_connection_info(file_data=XetFileData("", token_url), headers=headers)
                session = get_xet_session()  # type: ignore[no-untyped-call]
                group = session.new_download_stream_group(
                    endpoint=info.endpoint,
                    token=info.access_token,
                    token_expiry_unix_secs=info.expiration_unix_epoch,
                    token_refresh_url=token_url,
                    token_refresh_headers=headers,
                    custom_headers=xet_headers_without_auth(headers),
                )
                self._groups[token_url] = group
            return group


def _trouble(error: Exception) -> HubError:
    return HubError("network", f"The xet storage can't be read ({show(str(error) or type(error).__name__, 120)})")
