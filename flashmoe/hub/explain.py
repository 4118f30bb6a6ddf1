"""Turns whatever the network, huggingface_hub and a server bring into a `HubError` that says the cause."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from flashmoe import figures
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show

LOGIN_PAGE = "https://huggingface.co"
"""Where an account lives, whichever mirror is asked: a mirror has no page to log in or to accept terms."""
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST = 9, 10, (62, 64)


def explain(error: Exception, what: str, endpoint: str, *, has_token: bool, url: str = "") -> HubError:
    """`error` as what happened and what to do. `what` names the repository or file, `url` the address asked."""
    import httpx2
    import huggingface_hub.errors as hub_errors

    repo = what.split(" ")[0]
    response = getattr(error, "response", None)
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return offline("HF_HUB_OFFLINE")
    if isinstance(error, hub_errors.GatedRepoError):
        page = f"{LOGIN_PAGE}/{repo}"
        if has_token:
            return HubError("gated", f"Your account has no access to {repo} yet", f"ask for it at {page} and try again")
        return HubError(
            "gated", f"{repo} is gated", f"accept its terms at {page}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return HubError("changed", f"{what}: that version isn't on the hub (any more)", "start the download again")
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        return HubError("not_found", f"{what} isn't on the hub (any more)", f"see `flashmoe-tui search {repo}`")
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        hint = "check the name" if has_token else "check the name or, if it is private, set HF_TOKEN"
        return HubError("not_found", f"The hub has no {repo} that you can see", hint)
    if isinstance(error, hub_errors.DisabledRepoError):
        return HubError("forbidden", f"{repo} was disabled by its owner or by the hub")
    if response is not None:
        return of_status(response.status_code, response.headers, what, host_of(url or endpoint))
    if isinstance(error, (httpx2.TransportError, httpx2.InvalidURL, httpx2.StreamError, RuntimeError)):
        return of_connection(error, url or endpoint, what)
    if isinstance(error, OSError):
        return HubError("io_error", f"{what}: {show(error.strerror or str(error))}")
    return HubError("bad_answer", f"{host_of(endpoint)} sent an invalid answer about {what}", "try again later")


def offline(variable: str) -> HubError:
    """An environment variable forbids asking the hub."""
    return HubError(
        "offline", f"{variable} is set, so the hub isn't asked", "unset it to search and download; local models work"
    )


def of_status(status: int, headers: Mapping[str, str], what: str, host: str) -> HubError:
    """An HTTP status that is an error."""
    wait = retry_after(headers)
    if status == 401:
        return HubError(
            "unauthorized", "The hub refuses your token", "renew it with `hf auth login`, or unset HF_TOKEN"
        )
    if status == 403:
        return HubError("forbidden", f"The hub forbids access to {what}", "check that your token may read it")
    if status == 407:
        return proxy_login(host)
    if status == 429:
        after = f" for {wait:.0f} s" if wait else ""
        return HubError(
            "rate_limited", f"{host} asks to slow down{after}", "try again later, or log in", retry_after=wait
        )
    if status >= 500:
        return HubError("server", f"{host} has trouble (status {status})", "try again later", retry_after=wait)
    return HubError("bad_answer", f"{host} answered {status} about {what}")


def of_connection(error: Exception, url: str, what: str) -> HubError:
    """A connection that wasn't made, or broke: the proxy, the certificate, the clock, or the network itself."""
    import httpx2

    host, proxy = host_of(url), proxy_for(url)
    certificate = _certificate_error(error)
    if certificate is not None:
        return _of_certificate(certificate, host)
    if isinstance(error, httpx2.ProxyError):
        if str(error)[:3] == "407":
            return proxy_login(host)
        where = f"{proxy[0]}={proxy[1]}" if proxy else "a proxy"
        return HubError(
            "network", f"The proxy ({where}) doesn't let {host} through ({show(str(error), 60)})",
            f"ask for access, or add {host} to NO_PROXY to go around it",
        )  # fmt: skip
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        if proxy:
            return HubError(
                "offline", f"The proxy {proxy[1]} doesn't answer",
                f"correct or unset {proxy[0]}, or add {host} to NO_PROXY to go around it",
            )  # fmt: skip
        return HubError("offline", f"Can't reach {host}: no network, or it is down", "try again later")
    if isinstance(error, httpx2.TimeoutException):
        return HubError("network", f"{host} did not answer in time", "check the network and try again")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return HubError("bad_answer", f"The address of {what} isn't a web address")
    if isinstance(error, httpx2.TooManyRedirects):
        return HubError("bad_answer", f"{host} sends from one address to the next without end", "try again later")
    return HubError("network", f"The connection to {host} broke", "trying again usually helps")


def proxy_login(host: str) -> HubError:
    """The proxy wants a name and a password."""
    return HubError(
        "network", f"The proxy on the way to {host} wants a password",
        "write it as HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
    )  # fmt: skip


def web_page(host: str, what: str) -> HubError:
    """A page in HTML came where something else was asked for."""
    return HubError(
        "bad_answer", f"{host} answered with a web page instead of {what}",
        "a network that wants you to log in first does that: open any page in a browser, then try again",
    )  # fmt: skip


def bad_endpoint(value: str) -> HubError:
    """HF_ENDPOINT is no address."""
    shown = show(value, 80)
    meant = f"set it to https://{shown}" if value and "/" not in value and " " not in value else "unset it"
    return HubError("bad_setting", f"HF_ENDPOINT is “{shown}”, which isn't an address with https:// in front", meant)


def host_of(url: str) -> str:
    """The host of an address, fit to be shown."""
    return show(urlsplit(url).hostname or url, 100)


def proxy_for(url: str) -> tuple[str, str] | None:
    """The variable and the proxy's address (without its password) that requests to `url` go through."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    if parts.hostname and proxy_bypass(parts.hostname):
        return None
    for scheme in (parts.scheme, "all"):
        if proxies.get(scheme):
            proxy = urlsplit(proxies[scheme] if "://" in proxies[scheme] else f"http://{proxies[scheme]}")
            port = f":{proxy.port}" if proxy.port else ""
            return f"{scheme.upper()}_PROXY", f"{proxy.scheme}://{show(proxy.hostname or '', 80)}{port}"
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header (a number or a date), or of the hub's ``ratelimit`` header."""
    value = str(headers.get("retry-after", "")).strip()
    if value.isdigit():
        return float(min(int(value[:6]), 3600))
    if value:
        from email.utils import parsedate_to_datetime

        try:
            return max(0.0, min(3600.0, parsedate_to_datetime(value).timestamp() - _server_now(headers)))
        except (ValueError, TypeError):
            return None
    if "ratelimit" not in headers:
        return None
    from huggingface_hub.utils._http import parse_ratelimit_headers

    info = parse_ratelimit_headers(headers)
    return float(info.reset_in_seconds) if info is not None and info.remaining == 0 else None


def _server_now(headers: Mapping[str, str]) -> float:
    """The server's own time where it tells it: this machine's clock may be off."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return time.time()


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    for _ in range(10):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _of_certificate(error: ssl.SSLCertVerificationError, host: str) -> HubError:
    code = getattr(error, "verify_code", 0)
    if code in (_NOT_YET_VALID, _EXPIRED):
        when = "isn't valid yet" if code == _NOT_YET_VALID else "has expired"
        today = time.strftime("%Y-%m-%d %H:%M")
        return HubError(
            "network", f"The certificate of {host} {when}: this machine's clock says {today}",
            "set the clock if that is wrong; if it is right, the server's certificate is to blame",
        )  # fmt: skip
    if code in _WRONG_HOST:
        return HubError(
            "network", f"The certificate that answers for {host} belongs to another host",
            "check HF_ENDPOINT; a network that wants you to log in first does that too",
        )  # fmt: skip
    return HubError(
        "network", f"The certificate of {host} isn't signed by anyone that this machine trusts",
        "if your network checks its traffic, set SSL_CERT_FILE to a file with its certificate",
    )  # fmt: skip


def read_json(response: Any, what: str, *, limit: int) -> Any:
    """The body of a streamed answer as JSON, bounded. Raises `HubError` for pages and for what is no JSON."""
    import msgspec

    host = host_of(str(response.url))
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > limit:
            raise HubError("bad_answer", f"{host} sent more than {figures.size(limit)} as {what}")
    if kind == "text/html" or bytes(body[:64]).lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise web_page(host, what)
    try:
        return msgspec.json.decode(bytes(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HubError("bad_answer", f"{host} answered with something that isn't {what}", "try again later") from None
