"""What the failure of a run's first call says about its inputs: that the prompts or the latent are not for this model.

No model says what it expects of a prompt, nor all that it expects of a latent, so this cannot be checked before.
Networks say it in the words of torch.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence

from ..hooks.remembered import is_others

# Of a linear layer and of a norm, the first layers that a prompt meets.
_SHAPES = (re.compile(r"cannot be multiplied \(\d+x(?P<given>\d+) and (?P<expected>\d+)x\d+\)"),
           re.compile(r"normalized_shape=\[(?P<expected>\d+)\].* size ?\[[\d, ]*\b(?P<given>\d+)\]"))

_LIBRARIES = ("torch", "einops")
_ABSENT = re.compile(r"NoneType|required positional argument")  # in the words of Python, and of torch's functions
_DIMENSIONS = re.compile(r"dimension|\bsizes?\b|\bshapes?\b|values to unpack|index out of range", re.IGNORECASE)
_TEXTS = {"cross_attn": "", "pooled_output": " (pooled output)"}


def explain(error: Exception, conds: Mapping[str, Sequence[dict] | None], latents: Sequence[Sequence[int]] = (),
            dimensions: int | None = None) -> None:
    """Raise ValueError from `error` where a prompt or the latent is the reason for it.

    Args:
        conds: those of the guider, by name.
        latents: shapes of what is sampled: one, or several in one.
        dimensions: of the latents that the model is made for, without batch and channels; None where not known.
    """
    if _is_in_other_code(error):
        return
    if type(error) in (RuntimeError, TypeError, AttributeError):  # torch's or Python's own words
        _explain_prompts(error, conds)
    if type(error) in (RuntimeError, ValueError, IndexError) or type(error).__name__ == "EinopsError":
        _explain_latents(error, latents, dimensions)


def _is_in_other_code(error: Exception) -> bool:
    """Whether it was another pack's code that failed, on its own or in a call of a library."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in names if name.partition(".")[0] not in _LIBRARIES]
    return bool(own) and is_others(own[-1])


def _explain_prompts(error: Exception, conds: Mapping[str, Sequence[dict] | None]) -> None:
    shapes = next((found.groupdict() for pattern in _SHAPES if (found := pattern.search(str(error)))), {})
    entries = [(name, entry) for name, found in conds.items() for entry in found or ()]
    for name, entry in entries if shapes else ():
        for key, part in _TEXTS.items():
            if _width(entry.get(key)) == shapes["given"]:
                raise ValueError(f"The {name} conditioning{part} has {shapes['given']} channels, but this model "
                                 f"expects {shapes['expected']}. Encode the prompt with the text encoder that belongs "
                                 f"to this model.") from error
    # Other code may fail in the same call; a model without text, such as an ADM, is not to blame for that.
    is_absent = type(error) is not RuntimeError and _ABSENT.search(str(error))
    for name, entry in entries if shapes or is_absent else ():
        if entry.get("cross_attn") is None:
            raise ValueError(f"The {name} conditioning contains no text, and this model cannot run without it "
                             f"({error}). Encode the prompt with the text encoder that belongs to this model."
                             ) from error


def _explain_latents(error: Exception, latents: Sequence[Sequence[int]], dimensions: int | None) -> None:
    if not _DIMENSIONS.search(str(error)):
        return
    shapes = " and ".join(" × ".join(map(str, shape)) for shape in latents)
    if len(latents) > 1:
        raise ValueError(f"This model could not sample latents with the shapes {shapes} ({error}). Connect the empty "
                         f"latent nodes or the VAEs of this model.") from error
    for shape in latents:
        if dimensions is not None and len(shape) != dimensions + 2:
            raise ValueError(f"The latent has {len(shape)} dimensions ({shapes}), but this model's latents have "
                             f"{dimensions + 2} ({error}). Connect the empty latent node or the VAE of this model."
                             ) from error
        if type(error) is IndexError:  # as where a network looks for a second one
            raise ValueError(f"This model could not sample a latent with the shape {shapes} ({error}). Connect the "
                             f"empty latent nodes of this model; some models need several latents, such as video and "
                             f"audio.") from error


def _width(tensor) -> str | None:
    """The number of channels, as an error quotes it."""
    return str(tensor.shape[-1]) if tensor is not None else None
