"""One attention call of the host with perturbed and plain rows in it.

The host stacks rows (one for each conditioning) of B samples each along the batch axis. Plain rows keep the host's own
attention, untouched; only the perturbed rows are taken apart into heads and handed to the core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ....pag_core.perturbation import Perturbation, perturb_attention

OVERRIDE = "optimized_attention_override"  # in transformer_options: the host's one slot around every attention
# (q, k, v, mask) -> output; the mask is [1 or rows·B, 1 or H, 1 or N, N] or None
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


@dataclass(frozen=True)
class HeadLayout:
    """How a call lays out its heads, going in and coming out: [B, H, N, D] where split, else [B, N, H·D]."""

    heads: int
    split_in: bool = False
    split_out: bool = False

    def open(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, H, N, D] from what goes in; grouped keys and values have fewer heads of the same width."""
        if self.split_in:
            return q, k, v
        width = q.flatten(2).shape[2] // self.heads
        # SD3 hands over V as [B, N, H, D], which the host's attention functions take for the same.
        return tuple(t.reshape(*t.shape[:2], -1, width).transpose(1, 2) for t in (q, k, v))

    def close(self, out: torch.Tensor) -> torch.Tensor:
        """What comes out from [B, H, N, D]."""
        return out if self.split_out else out.transpose(1, 2).flatten(2)

    def reopen(self, out: torch.Tensor) -> torch.Tensor:
        """[B, H, N, D] from what came out."""
        return out if self.split_out else out.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class LayerPerturbation:
    """What is done to one layer: the perturbation, and to which of its heads (None: all)."""

    name: str
    perturbation: Perturbation
    heads: frozenset[int] | None


def as_given(previous: Callable | None, func: Callable, args: tuple, kwargs: dict) -> Callable[[], torch.Tensor]:
    """The host's call of an attention, through another node's override if there is one: with the arguments as the host
    gives them, for an override may take some by keyword alone."""
    return partial(previous, func, *args, **kwargs) if previous else partial(func, *args, **kwargs)


def on_copies(previous: Callable | None, *before, args: tuple, **kwargs) -> Callable[[], torch.Tensor] | None:
    """Another node's attention with copies of q, k and v, the first of `args`, which it may change in place while ours
    still needs them; None where there is none. `before`: what it is given before these."""
    return previous and (lambda: previous(*before, *(t.clone() for t in args[:3]), *args[3:], **kwargs))


def flags(uuids: Sequence, is_ours: Callable[[object], bool], batch: torch.Tensor) -> list[bool]:
    """Which rows of a batch are perturbed, one flag for each.

    In a call of their own all are, and another node may have laid the batch out anew, so that it holds no whole rows.
    """
    ours = [is_ours(row) for row in uuids]
    return [True] if ours and all(ours) and batch.shape[0] % len(ours) else ours


def attend_rows(layer: LayerPerturbation, ours: Sequence[bool], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
                layout: HeadLayout, host: Attention, per_head: Attention, *, mask: torch.Tensor | None = None,
                image: slice | None = None, queries: slice | None = None, whole: torch.Tensor | None = None,
                noise_key: tuple = (), **geometry):
    """Attention in which the rows marked in `ours` are perturbed.

    Args:
        ours: one flag for each row; the batch axis of q, k and v holds len(ours)·B samples.
        q, k, v: as the host has them, see `layout`.
        host: the host's attention in the host's layout, for any rows.
        per_head: the same attention on [B, H, N, D].
        mask: the call's attention mask, of 2, 3 or 4 axes as the host allows.
        image: the image tokens of a joint sequence; None where all tokens are the image's.
        queries: which of the keys' tokens the queries are, where not all have one; the image's must be among them.
        whole: what another node's attention makes of all rows, for it may count on seeing every row.
        noise_key: what the layer's randomness depends on besides the seed and the layer.
        geometry: `scale` and `grid` of `perturb_attention`.
    """
    batch = q.shape[0] // len(ours)
    if mask is not None and mask.ndim < 4:
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]

    def part(rows: slice) -> tuple[torch.Tensor, ...]:
        cut = mask[rows] if mask is not None and mask.shape[0] == q.shape[0] else mask
        return q[rows], k[rows], v[rows], cut

    pieces = []
    for perturbed, start, stop in _runs(ours):
        if not perturbed:
            rows = slice(start * batch, stop * batch)
            pieces.append(host(*part(rows)) if whole is None else whole[rows])
            continue
        # Row by row, so that a sample's randomness does not depend on which rows share the call.
        for row in range(start, stop):
            rows = slice(row * batch, (row + 1) * batch)
            *qkv, cut = part(rows)
            queries_in, keys_in, values_in = layout.open(*qkv)

            def attend(q, k, v, rows=rows, cut=cut):
                if whole is not None:
                    out = _among(queries, k.shape[-2], layout.reopen(whole[rows]))
                    if image is None or q.shape[-2] == k.shape[-2]:
                        return out
                    return torch.cat((out[:, :, :image.start], out[:, :, image.stop:]), dim=2)  # the text queries
                if image and cut is not None and cut.shape[-2] not in (1, q.shape[-2]):
                    # The text queries of a joint sequence.
                    cut = torch.cat((cut[..., :image.start, :], cut[..., image.stop:, :]), dim=-2)
                return per_head(q, k, v, cut)

            out = perturb_attention(_among(queries, keys_in.shape[-2], queries_in), keys_in, values_in, attend,
                                    layer.perturbation, heads=layer.heads, image=image, mask=cut,
                                    noise_key=(layer.name, *noise_key), **geometry)
            pieces.append(layout.close(out if queries is None else out[:, :, queries]))
            del out  # its memory is needed for the result
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _among(queries: slice | None, tokens: int, x: torch.Tensor) -> torch.Tensor:
    """[B, H, tokens, D] with x in the place of the queries and 0 elsewhere; x itself where these are all."""
    if queries is None:
        return x
    full = x.new_zeros(*x.shape[:2], tokens, x.shape[3])
    full[:, :, queries] = x
    return full


def _runs(flags: Sequence[bool]) -> list[tuple[bool, int, int]]:
    """Neighbours of the same kind as (flag, start, stop), so that whole slices are computed at once."""
    runs: list[tuple[bool, int, int]] = []
    for index, flag in enumerate(flags):
        if runs and runs[-1][0] == flag:
            runs[-1] = (flag, runs[-1][1], index + 1)
        else:
            runs.append((flag, index, index + 1))
    return runs
