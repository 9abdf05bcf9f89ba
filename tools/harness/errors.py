"""Errors that people can act on, and the one place where a command turns them into an exit code."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
from collections.abc import Callable, Iterator
from urllib.error import HTTPError


class HarnessError(RuntimeError):
    """Something outside the code is wrong; the message says what, and what to do about it."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def readable(error: BaseException) -> str | None:
    """The message for an error that needs no traceback; None for a defect, which does."""
    if isinstance(error, HarnessError):
        return str(error)
    if isinstance(error, HTTPError):
        return f"ComfyUI answered {error.url} with HTTP {error.code} ({error.reason}). Its log says why."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" while writing {error.filename}" if error.filename else ""
        return f"The disk is full{place}. Free some space; the .host folder can be deleted: it is downloaded again."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return (f"{error.filename} cannot be written ({error.strerror}). Commands store files next to noxfile.py, in "
                ".host, demo and build: copy this folder to a location with write access.")
    return None


def command(main: Callable[[list[str]], None]) -> None:
    """Runs `main(arguments)`. Exit code 0, 1 with a message for a readable error, 130 for Ctrl-C, 143 for SIGTERM."""
    try:
        with signals_raised():
            main(sys.argv[1:])
    except KeyboardInterrupt as end:
        print("\nStopped.", file=sys.stderr)
        sys.exit(143 if isinstance(end, TerminatedError) else 130)
    except Exception as error:
        message = readable(error)
        if message is None:
            raise
        print(f"\nError: {message}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """SIGTERM raises here, as Ctrl-C does. What has begun to clean up is not disturbed by a SIGTERM after either."""
    def end(number: int, _) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # a job in the background ignores Ctrl-C
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
