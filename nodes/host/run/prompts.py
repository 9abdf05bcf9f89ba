"""What the failure of a run's first call says about the prompts: that they are not for this model.

No model says what it expects of a prompt, so this cannot be checked before. Networks say it in the words of torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Of a linear layer and of a norm, the first layers that a prompt meets.
_SHAPES = (re.compile(r"cannot be multiplied \(\d+x(?P<given>\d+) and (?P<expected>\d+)x\d+\)"),
           re.compile(r"normalized_shape=\[(?P<expected>\d+)\].* size ?\[[\d, ]*\b(?P<given>\d+)\]"))

_ABSENT = re.compile(r"NoneType|required positional argument")  # in the words of Python, and of torch's functions


def explain(error: Exception, conds: Mapping[str, Sequence[dict] | None]) -> None:
    """Raise ValueError from `error` where a prompt is the reason for it; `conds` are those of the guider, by name."""
    if type(error) not in (RuntimeError, TypeError, AttributeError):
        return  # not torch's or Python's own words
    shapes = next((found.groupdict() for pattern in _SHAPES if (found := pattern.search(str(error)))), {})
    entries = [(name, entry) for name, found in conds.items() for entry in found or ()]
    for name, entry in entries if shapes else ():
        if _width(entry.get("cross_attn")) == shapes["given"]:
            raise ValueError(f"The {name} conditioning has {shapes['given']} channels, but this model expects "
                             f"{shapes['expected']}. Encode the prompt with the text encoder that belongs to this "
                             f"model.") from error
        if _width(entry.get("pooled_output")) == shapes["given"]:
            raise ValueError(f"The pooled output of the {name} conditioning has {shapes['given']} channels, but this "
                             f"model expects {shapes['expected']}. Encode the prompt with the text encoder that "
                             f"belongs to this model.") from error
    # Other code may fail in the same call; a model without text, such as an ADM, is not to blame for that.
    is_absent = type(error) is not RuntimeError and _ABSENT.search(str(error))
    for name, entry in entries if shapes or is_absent else ():
        if entry.get("cross_attn") is None:
            raise ValueError(f"The {name} conditioning contains no text, and this model cannot run without it "
                             f"({error}). Encode the prompt with the text encoder that belongs to this model."
                             ) from error


def _width(tensor) -> str | None:
    """The number of channels, as an error quotes it."""
    return str(tensor.shape[-1]) if tensor is not None else None
