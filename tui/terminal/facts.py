"""What is known about the terminal: SSH, tmux, the clipboard, colours. No Textual here."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping

# xterm and most others take about 100 kB of base64; tmux passes on 1 MB; foot, kitty and WezTerm more. What is larger
# is silently dropped by many, so it is refused here with a sentence instead.
OSC52_LIMIT = 74_994
"""Bytes of text: base64 of this many stays under 100,000 characters."""

_DCS_PIECE = 768
"""GNU screen cuts device control strings at this many characters."""


def over_ssh(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this terminal is at the far end of an SSH connection."""
    environ = os.environ if environ is None else environ
    return any(environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))


def osc52(text: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The sequence that asks the terminal to put `text` on the clipboard, wrapped for tmux or screen.

    None where the text is too large for terminals in general. Nobody acknowledges the sequence.
    """
    environ = os.environ if environ is None else environ
    data = text.encode("utf-8", "replace")
    if len(data) > OSC52_LIMIT:
        return None
    sequence = f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07"
    if environ.get("TMUX"):
        # Both: tmux itself takes OSC 52 where set-clipboard is on; the wrapped one reaches the outer terminal where
        # allow-passthrough is on. Doubled ESC is tmux's quoting.
        return sequence + "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if environ.get("TERM", "").startswith("screen") or environ.get("STY"):
        pieces = [sequence[i : i + _DCS_PIECE] for i in range(0, len(sequence), _DCS_PIECE)]
        return "".join(f"\x1bP{piece}\x1b\\" for piece in pieces)
    return sequence


def in_tmux(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this terminal is one of tmux's."""
    return bool((os.environ if environ is None else environ).get("TMUX"))


def tmux_copy(text: str) -> bool:
    """Hands `text` to tmux, which keeps it as its newest buffer and sends it on to the terminal around it (``-w``);
    whether that went well. Works with tmux's defaults, under which it takes no OSC 52 from programs."""
    import subprocess

    try:
        done = subprocess.run(
            ["tmux", "load-buffer", "-w", "-"], input=text.encode("utf-8", "replace"), capture_output=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def colours(environ: Mapping[str, str] | None = None) -> str:
    """``truecolor``, ``256``, ``16`` or ``none``, from the environment."""
    environ = os.environ if environ is None else environ
    if "NO_COLOR" in environ or environ.get("TERM") in ("dumb", "vt52", "vt100", "vt102", "vt220"):
        return "none"
    if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "truecolor"
    term = environ.get("TERM", "")
    if "direct" in term or term in ("xterm-kitty", "xterm-ghostty", "alacritty", "foot"):
        return "truecolor"
    return "256" if "256" in term else "16"


def without_drawing(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this terminal has no lines, blocks and braille to draw with: old ones, the Linux console, or no UTF-8."""
    environ = os.environ if environ is None else environ
    term = environ.get("TERM", "")
    if term in ("linux", "dumb", "ansi", "cons25", "vt52", "vt100", "vt102", "vt220"):
        return True
    named = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    codeset = named.partition("@")[0].partition(".")[2].lower().replace("-", "")
    if not codeset and in_tmux(environ):
        return _tmux_has_no_utf8(environ)
    return bool(codeset) and codeset != "utf8"


def _tmux_has_no_utf8(environ: Mapping[str, str]) -> bool:
    """Whether tmux was started without UTF-8, as over an SSH that passes no LANG on: it draws ``_`` for a line then."""
    import subprocess

    ask = ["tmux", "display-message", "-p", "#{client_utf8}"]
    try:
        told = subprocess.run(ask, env=dict(environ), capture_output=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return told.strip() == b"0"


def editor_command(environ: Mapping[str, str] | None = None) -> list[str] | None:
    """$VISUAL or $EDITOR as an argument list, else the first editor found; None where there is none."""
    import shlex
    import shutil

    environ = os.environ if environ is None else environ
    for name in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(environ.get(name, ""))
        except ValueError:
            continue
        if words and shutil.which(words[0]):
            return words
    found = next((path for name in ("nano", "vim", "vi") if (path := shutil.which(name))), None)
    return [found] if found else None
