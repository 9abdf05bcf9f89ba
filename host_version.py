"""Which ComfyUI this pack runs on. Imports nothing of it that an old one lacks, so that the pack can say so there."""

from __future__ import annotations

import re

OLDEST = (0, 16, 3)  # the oldest version that every test was run on; pyproject.toml and the README say the same


def why_unsupported() -> str | None:
    """What to tell the user of a ComfyUI older than `OLDEST`, or None where the pack can run."""
    version = comfyui_version()
    if version is None:
        found = "this one does not say its version, so it is older"
    elif (numbers := re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)) and tuple(map(int, numbers.groups())) < OLDEST:
        found = f"this one is {version}"
    else:
        return None
    return (f"Perturbed-Attention Guidance (PAG) needs ComfyUI {'.'.join(map(str, OLDEST))} or newer; {found}. "
            f"None of its nodes were loaded. Update ComfyUI, and restart it.")


def comfyui_version() -> str | None:
    """The host's version, "0.30.0"; None where it is too old to tell."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return None
    return str(__version__)
