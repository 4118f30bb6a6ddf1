"""Turns an exception that ended a command into one sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import traceback

from flashmoe.cli.common import EXIT_FAILED, EXIT_RETRY, EXIT_USAGE, CliError, error, exit_code_of
from flashmoe.failures import kept, told


def report(failure: Exception) -> int:
    """Prints what went wrong; a failure that nobody foresaw leaves its traceback in the log folder."""
    if os.environ.get("FLASHMOE_DEBUG"):
        traceback.print_exception(failure)
    if isinstance(failure, CliError):
        error(failure.message)
        return failure.exit_code
    from backends.interface import EngineError

    if isinstance(failure, EngineError):
        error(failure.message)
        return exit_code_of(failure.code)
    message = getattr(failure, "message", None)
    if isinstance(message, str) and type(failure).__module__.startswith(("flashmoe.", "backends.")):
        # The project's own errors (paths, configuration, history, hub) carry a sentence, and may say how to exit.
        error(message)
        code = getattr(failure, "exit_code", EXIT_FAILED)
        return code if isinstance(code, int) else EXIT_FAILED
    if isinstance(failure, FileNotFoundError) and failure.filename:
        error(f"{failure.filename} does not exist.")
        return EXIT_USAGE
    if isinstance(failure, OSError):
        name = f"{failure.filename}: " if failure.filename else ""
        error(f"{name}{failure.strerror or failure}.")
        return EXIT_RETRY if failure.errno in (errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT) else EXIT_FAILED
    error(f"{told(failure)} {kept(failure)}")
    return EXIT_FAILED
