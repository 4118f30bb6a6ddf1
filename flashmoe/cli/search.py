"""``search TEXT``: repositories on the hub; ``search owner/name``: what one of them holds."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from flashmoe.cli.common import EXIT_OK, add_json_flag, note, out, positive_int, print_json
from flashmoe.figures import size

if TYPE_CHECKING:
    from backends.errors import ReportedError
    from flashmoe.hub.address import Reference
    from flashmoe.hub.client import HubClient, HubPage


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "search",
        help="models on the hub",
        description="Lists GGUF repositories whose names match, or, given owner/name, the files of that repository.",
    )
    parser.add_argument(
        "text", nargs="*", metavar="TEXT", help="words of a name, or owner/name; nothing: what is trending"
    )
    parser.add_argument("--limit", metavar="N", type=positive_int, default=20, help="at most N repositories (20)")
    parser.add_argument(
        "--sort", choices=("trending", "downloads", "likes", "date"), default="trending", help="what comes first"
    )
    add_json_flag(parser)


_SORT = {"trending": "trendingScore", "downloads": "downloads", "likes": "likes", "date": "lastModified"}


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from flashmoe.hub.address import looks_like_reference
    from flashmoe.hub.client import HubClient, configured_endpoint
    from flashmoe.hub.lookup import read_reference
    from flashmoe.retry import patiently

    client, text = HubClient(), " ".join(args.text)
    if looks_like_reference(text, endpoint=configured_endpoint()):
        return _show_repo(client, read_reference(text), args.json)
    page = patiently(lambda: client.search_page(text, limit=args.limit, sort=_SORT[args.sort]), waiting=say_wait)
    return _show_hits(page, client, args, text)


def say_wait(error: ReportedError, wait: float) -> None:
    """Tells on stderr why nothing happens."""
    note(f"{error.gist}; trying again in {wait:.0f} s.")


def _show_hits(page: HubPage, client: HubClient, args: argparse.Namespace, text: str) -> int:
    hits = page.hits
    if args.json:
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
    if page.more:
        note(f"There are more: --limit {2 * args.limit}")
    note(f"flashmoe-tui search {hits[0].repo}  shows its files.")
    return EXIT_OK


def _show_repo(client: HubClient, wanted: Reference, as_json: bool) -> int:
    from flashmoe.hub.downloads.jobs import free_bytes
    from flashmoe.hub.errors import HubError
    from flashmoe.hub.library import models_root
    from flashmoe.hub.lookup import pick
    from flashmoe.hub.names import show
    from flashmoe.retry import patiently

    repo = patiently(lambda: client.repo(wanted.repo, wanted.revision), waiting=say_wait)
    if as_json:
        print_json(repo)
        return EXIT_OK
    state = "gated: accept its terms on its page first. " if repo.gated else ""
    note(f"{repo.repo}  {state}{repo.licence}".rstrip())
    usual, why = None, ""
    try:
        found = pick(client, repo, wanted, free=free_bytes(models_root()))
        usual, why = found.quant, found.why
    except HubError as error:
        note(error.message)
    if not repo.quants:
        return EXIT_OK
    labels = [show(q.label, 60) for q in repo.quants]
    width = max(len(label) for label in labels)
    for label, quant in zip(labels, repo.quants, strict=True):
        parts = f"{len(quant.files)} parts" if len(quant.files) > 1 else "1 file"
        lack = "" if quant.complete else f"  (incomplete on the hub: {len(quant.missing)} missing)"
        mark = "  <- pull takes this one" if quant is usual else ""
        out(f"{label:<{width}}  {size(quant.size):>9}  {parts}{lack}{mark}")
    if usual is not None:
        note(f"pull takes {why}" if why else f"pull takes {show(usual.label, 60)}.")
        note(f"flashmoe-tui pull {repo.repo}:{show(usual.label, 80)}  downloads it; plan tells how it runs.")
    return EXIT_OK
