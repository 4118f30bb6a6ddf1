"""The download manager and the hub client as the configuration wants them."""

from __future__ import annotations

from flashmoe.config.load import load_config
from flashmoe.config.schema import Config
from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.manager import DownloadManager
from flashmoe.hub.downloads.state import Options

RETRY_FAILED_S = 60.0


def open_manager(
    config: Config | None = None,
    *,
    client: HubClient | None = None,
    connections: int | None = None,
    limit_bytes_s: float | None = None,
    stays_open: bool = False,
) -> DownloadManager:
    """A manager on the user's models folder; call its `start` to go on with what earlier runs left.

    `stays_open`: an app, in which a download that gave up tries again by itself.
    """
    config = config or load_config().config
    downloads = config.downloads
    limit = limit_bytes_s if limit_bytes_s is not None else downloads.limit * (1 << 20) or None
    retry = RETRY_FAILED_S if stays_open else None
    options = Options(connections=connections or downloads.parallel, retry_failed_s=retry)
    return DownloadManager(config.models_folder(), client, options, limit_bytes_s=limit)
