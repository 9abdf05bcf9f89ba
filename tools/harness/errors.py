"""Errors a person can act on, and the one place where a command turns them into an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class HarnessError(RuntimeError):
    """Something outside the code is wrong; the message says what, and what to do about it."""


def readable(error: BaseException) -> str | None:
    """The message for an error that needs no traceback; None for a defect, which does."""
    if isinstance(error, HarnessError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" while writing {error.filename}" if error.filename else ""
        return f"The disk is full{place}. Free some space (the .host folder can be deleted: it is fetched again)."
    return None


def command(main: Callable[[list[str]], None]) -> None:
    """Runs `main(arguments)`. Exit code 0, 1 with a message for a HarnessError or a full disk, 130 for Ctrl-C."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = readable(error)
        if message is None:
            raise
        print(f"\nError: {message}", file=sys.stderr)
        sys.exit(1)
