"""``flashmoe-tui doctor``: what this machine has and what is wrong with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flashmoe.cli.columns import labelled
from flashmoe.cli.common import EXIT_FAILED, EXIT_OK, ProgressLine, add_json_flag, out, print_json
from flashmoe.figures import rate, size

if TYPE_CHECKING:
    from flashmoe.doctor import Report

DESCRIPTION = """\
Prints what this machine has, what llama.cpp can use of it, what is wrong, and what to do.

The report is fit for a bug tracker: the home folder is shortened to ~, and tokens, addresses and host names are left
out. Nothing is changed; the disk is read for a second (where there is no model to read, a scratch file of 256 MiB is
written and deleted)."""

EXAMPLES = """\
what it looks at:
  Versions            the program, Python, llama.cpp and the libraries that matter
  Machine             system, CPU and the instructions that llama.cpp has use for, memory (a cgroup's limit where there
                      is one), GPUs
  Disk of the models  file system, room, and what it gives: random experts of the largest model there (else 1 MiB
                      blocks of a scratch file), read as the engine reads them, past the page cache. Below 0.3 GB/s
                      a model larger than memory is slow
  llama.cpp           which backends can be used and why not the others, devices, what it was built for
  Folders             where config, models, chats and logs are, and whether they can be written
  This user           configuration, history, and the variables that matter (that a token is set, never the token)
  Terminal            colours, size, encoding; over SSH, within tmux

findings, at the end:
  x            a problem: something doesn't work; the sentence says what to do
  !            a warning: it works, but worse than it could

examples:
  flashmoe-tui doctor
  flashmoe-tui doctor --no-probe
  flashmoe-tui doctor --json > report.json
  flashmoe-tui doctor --json | jq -r '.findings[] | select(.level == "problem").message'

exit codes: 0 nothing stands in the way (there may be warnings), 1 something doesn't work, 2 wrong usage, 130
interrupted"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``doctor``."""
    parser = subparsers.add_parser("doctor", help="examine this machine", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--no-probe", action="store_true", help="don't measure the disk")
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Runs ``doctor``; 1 where something doesn't work."""
    from flashmoe.doctor import examine

    progress = ProgressLine()
    progress.update("examining the machine" if args.no_probe else "examining the machine and measuring the disk")
    try:
        report = examine(probe=not args.no_probe)
    finally:
        progress.clear()
    if args.json:
        print_json(report)
    else:
        for title, rows in _sections(report):
            out(title)
            width = max(len(name) for name, _ in rows)
            for name, text in rows:
                labelled(f"  {name:<{width}} ", text)
            out()
        _findings(report)
    return EXIT_FAILED if any(finding.level == "problem" for finding in report.findings) else EXIT_OK


def _findings(report: Report) -> None:
    if not report.findings:
        out("No problems found.")
        return
    out("Worth knowing")
    for finding in report.findings:
        labelled(f"  {'x' if finding.level == 'problem' else '!'} ", finding.message)


def _sections(r: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """The report as (title, (name, text)…)."""
    return [
        ("Versions", list(r.versions.items())),
        ("Machine", [*_os(r), *_cpu(r), *_memory(r), *_gpus(r)]),
        ("Disk of the models", _disk(r)),
        ("llama.cpp", _llama(r)),
        ("Folders", [(name, _folder(folder)) for name, folder in r.folders.items()]),
        ("This user", [*_user(r), *r.environment.items()]),
        ("Terminal", _terminal(r)),
    ]


def _os(r: Report) -> list[tuple[str, str]]:
    container = f", in {r.os['container']}" if r.os["container"] else ""
    return [("system", f"{r.os['system']}{container}"), ("kernel", f"{r.os['kernel']}, {r.os['libc']}")]


def _cpu(r: Report) -> list[tuple[str, str]]:
    cpu = r.cpu
    usable = f", {cpu['usable']} usable" if cpu["usable"] not in (None, cpu["threads"]) else ""
    quota = f", limited to {cpu['quota']:g}" if cpu["quota"] else ""
    cores = f"{cpu['cores']} cores, " if cpu["cores"] else ""
    return [
        ("cpu", f"{cpu['model']}: {cores}{cpu['threads']} threads{usable}{quota}"),
        ("cpu features", " ".join(cpu["features"]) or "unknown"),
    ]


def _memory(r: Report) -> list[tuple[str, str]]:
    memory = r.memory
    limit = f", limited to {size(memory['limit_bytes'])} by a cgroup" if memory.get("limit_bytes") else ""
    swap = f", swap {size(memory['swap_bytes'])}" if memory["swap_bytes"] else ", no swap"
    return [
        (
            "memory",
            f"{size(memory['total_bytes'])}, {size(memory['available_bytes'])} available{limit}{swap}",
        )
    ]


def _gpus(r: Report) -> list[tuple[str, str]]:
    rows = [
        ("gpu", f"{gpu['name']}, {size(gpu['total_bytes'])}, {size(gpu['used_bytes'])} used") for gpu in r.gpus["gpus"]
    ]
    use = {True: "llama.cpp can use it", False: "llama.cpp can't use it", None: "whether llama.cpp can use it: unknown"}
    for card in r.gpus["cards"] or ():
        driver = f"driver {card.driver}" if card.driver else "no driver"
        rows.append(("card", f"{card.name}{' (integrated)' if card.integrated else ''}, {driver}: {use[card.usable]}"))
    return rows or [("gpu", r.gpus["note"] or "none")]


def _disk(r: Report) -> list[tuple[str, str]]:
    disk = r.disk
    kind = {True: ", rotating", False: ", not rotating", None: ""}[disk["rotational"]]
    if disk["bandwidth_bytes_s"] is None:
        speed = disk["bandwidth_note"]
    else:
        speed = f"{rate(disk['bandwidth_bytes_s'])} ({disk['bandwidth_note']}, past the page cache)"
    return [
        ("file system", f"{disk['file_system'] or 'unknown'} on {disk['device'] or 'no block device'}{kind}"),
        ("free", size(disk["free_bytes"])),
        ("reads", speed),
    ]


def _llama(r: Report) -> list[tuple[str, str]]:
    llama = r.llama_cpp
    if "error" in llama:
        return [("error", llama["error"])]
    rows = [(f"backend {name}", obstacle or "ready") for name, obstacle in llama["backends"].items()]
    for device in llama["devices"]:
        memory = f", {size(device['total_bytes'])}" if device["total_bytes"] and device["kind"] != "CPU" else ""
        rows.append(("device", f"{device['name']}: {device['description']} ({device['kind']}{memory})"))
    return [*rows, ("gpu offload", "yes" if llama["gpu_offload"] else "no"), ("built for", llama["features"])]


def _folder(folder: dict[str, Any]) -> str:
    state = "" if folder["exists"] else " (not there yet)"
    return f"{folder['path']}{state}" + ("" if folder["writable"] else "  CAN'T BE WRITTEN")


def _user(r: Report) -> list[tuple[str, str]]:
    config = f"{r.config['file']}{'' if r.config['exists'] else ' (not there: the defaults are in force)'}"
    history = r.history
    chats = f"{history['chats']} chats, {size(history['bytes'])}" if "chats" in history else "none yet"
    return [("config", config), ("history", history.get("problem") or chats)]


def _terminal(r: Report) -> list[tuple[str, str]]:
    t = r.terminal
    extra = [word for word, on in (("over SSH", t["ssh"]), (t["multiplexer"], t["multiplexer"]),
                                   ("NO_COLOR", t["no_colour"]), (t["program"], t["program"])) if on]  # fmt: skip
    extra = list(dict.fromkeys(extra))  # a multiplexer calls itself the program, too
    return [
        ("TERM", f"{t['term'] or 'not set'}, {t['colours']} colours, {t['size']}, {t['encoding']}"),
        *([("also", ", ".join(extra))] if extra else []),
    ]
