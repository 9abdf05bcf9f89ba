"""ComfyUIs older than the newest that the tests know: what they do not have yet is skipped, with the reason.

On the newest one, and on any that comes after it, the same is an error: there something was renamed or removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from comfyui_version import __version__ as VERSION
from harness.host import NEWEST

OLDER = [int(number) for number in VERSION.split(".")[:3]] < [int(number) for number in NEWEST.split(".")]
newest_only = pytest.mark.skipif(OLDER, reason=f"about all that ComfyUI {NEWEST} has; this one is {VERSION}")



@contextmanager
def what_older_hosts_lack(error_type: type[Exception]) -> Iterator[None]:
    """Skips the test where the host itself is what fails, for an argument or a module that came later."""
    try:
        yield
    except error_type as error:
        if not OLDER:
            raise
        pytest.skip(f"not in ComfyUI {VERSION} yet: {error}")
