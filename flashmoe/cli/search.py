"""``search TEXT``: repositories on the hub; ``search owner/name``: what one of them holds."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from flashmoe.cli.common import EXIT_OK, add_json_flag, note, out, positive_int, print_json, size

if TYPE_CHECKING:
    from flashmoe.hub.client import HubClient, HubHit, HubRepo
    from flashmoe.hub.errors import HubError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "search",
        help="models on the hub",
        description="Lists GGUF repositories whose names match, or, given owner/name, the files of that repository.",
    )
    parser.add_argument(
        "text", nargs="*", metavar="TEXT", help="words of a name, or owner/name; nothing: what is wanted now"
    )
    parser.add_argument("--limit", metavar="N", type=positive_int, default=20, help="at most N repositories (20)")
    parser.add_argument(
        "--sort", choices=("trending", "downloads", "likes", "date"), default="trending", help="what comes first"
    )
    add_json_flag(parser)


_SORT = {"trending": "trendingScore", "downloads": "downloads", "likes": "likes", "date": "lastModified"}


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.client import HubClient
    from flashmoe.hub.names import looks_like_reference, parse_reference
    from flashmoe.hub.patience import patiently

    client, text = HubClient(), " ".join(args.text)
    if looks_like_reference(text):
        repo = patiently(lambda: client.repo(parse_reference(text)[0]), waiting=say_wait)
        return _show_repo(repo, args.json)
    hits = patiently(lambda: client.search(text, limit=args.limit, sort=_SORT[args.sort]), waiting=say_wait)
    return _show_hits(hits, client, args.json, text)


def say_wait(error: HubError, wait: float) -> None:
    """Tells on stderr why nothing happens."""
    note(f"{error.gist}; trying again in {wait:.0f} s.")


def _show_hits(hits: list[HubHit], client: HubClient, as_json: bool, text: str) -> int:
    if as_json:
        print_json(hits)
        return EXIT_OK
    if not hits:
        note(f"Nothing on {client.endpoint} matches “{text}”.")
        return EXIT_OK
    width = max(len(h.repo) for h in hits)
    out(f"{'repository':<{width}}  {'downloads':>10}  {'updated':<10}  licence")
    for hit in hits:
        when = time.strftime("%Y-%m-%d", time.gmtime(hit.modified)) if hit.modified else ""
        downloads = f"{hit.downloads:,}" if hit.downloads is not None else ""
        gated = "  (gated)" if hit.gated else ""
        out(f"{hit.repo:<{width}}  {downloads:>10}  {when:<10}  {hit.licence}{gated}".rstrip())
    note(f"flashmoe-tui search {hits[0].repo}  shows its files.")
    return EXIT_OK


def _show_repo(repo: HubRepo, as_json: bool) -> int:
    if as_json:
        print_json(repo)
        return EXIT_OK
    state = "gated: accept its terms on its page first. " if repo.gated else ""
    note(f"{repo.repo}  {state}{repo.licence}".rstrip())
    if not repo.quants:
        note("It holds no GGUF model to chat with.")
        return EXIT_OK
    width = max(len(q.label) for q in repo.quants)
    for quant in repo.quants:
        parts = f"{len(quant.files)} parts" if len(quant.files) > 1 else "1 file"
        lack = "" if quant.complete else "  (incomplete on the hub)"
        out(f"{quant.label:<{width}}  {size(quant.size):>9}  {parts}{lack}")
    note(
        f"flashmoe-tui pull {repo.repo}:{repo.quants[0].label}  downloads one; plan instead of pull tells how it runs."
    )
    return EXIT_OK
