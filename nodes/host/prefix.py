"""The perturbed rows of a U-Net start where they begin to differ.

Up to the first perturbed layer a perturbed row equals its conditional row, so computing it again is waste: on SD 1.5
with the middle block, about two thirds of the pass. Inside the host's one batched call the perturbed rows are taken out
before the network and put back, as copies of their conditional rows, at the first block that holds a perturbed layer.
Only public hooks are used; wherever one of them is taken, or anything else acts on the rows before that block, the
whole pass runs instead, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed

BlockKey = tuple[str, int]
_ORDER = {"input": 0, "middle": 1, "output": 2}
_LAYER_PATCH, _SKIP_PATCH = "forward_timestep_embed_patch", "output_block_patch"


def block_order(key: Sequence) -> tuple[int, int]:
    """Sorts (kind, number, ...) by the order in which a U-Net runs its blocks."""
    return _ORDER[key[0]], key[1]


class SharedPrefix:
    """DIFFUSION_MODEL wrapper around one forward of the network.

    Args:
        sources: {uuid of a perturbed row: uuid of the conditional row that it copies}.
        first: the first block with a perturbed layer; None if every row must run from the start.
        decline: called with a reason where the prefix cannot be shared.
    """

    def __init__(self, sources: Mapping[UUID, UUID], first: BlockKey | None, decline: Callable[[str], None]) -> None:
        self.sources = sources
        self.first = first
        self.decline = decline

    def __call__(self, executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None,
                 **kwargs):
        options = dict(transformer_options or {})
        uuids, conds = options["uuids"], options["cond_or_uncond"]
        # For the network a perturbed row is a conditional row; patches know the indices 0 and 1 only.
        options["cond_or_uncond"] = [0 if row in self.sources else cond for row, cond in zip(uuids, conds, strict=True)]
        source_of = {row: i for i, (row, cond) in enumerate(zip(uuids, conds, strict=True)) if cond == 0}
        sources = [source_of.get(self.sources.get(row, row), -1) if row in self.sources else i
                   for i, row in enumerate(uuids)]
        plain = [i for i, row in enumerate(uuids) if row not in self.sources]
        if self.first is None or len(plain) == len(uuids):
            return executor(x, timesteps, context, y, control, options, **kwargs)
        reason = self._obstacle(sources, control, options, kwargs)
        if reason:
            self.decline(reason)
            return executor(x, timesteps, context, y, control, options, **kwargs)

        late = _LateRows(self.first, options, context, [plain.index(source) for source in sources])
        options["uuids"] = [uuids[i] for i in plain]
        options["cond_or_uncond"] = [conds[i] for i in plain]
        options["patches"] = late.install(options.get("patches", {}))
        x, timesteps, context, y = (None if t is None else _take_rows(t, len(uuids), plain)
                                    for t in (x, timesteps, context, y))
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def _obstacle(self, sources: list[int], control: dict | None, options: dict, kwargs: dict) -> str | None:
        """Why the rows cannot be left out of the blocks before `first`, or None."""
        if -1 in sources:
            return "the host runs the conditional and the perturbed rows in separate calls (low memory or MultiGPU)"
        harmless = {_SKIP_PATCH} if block_order(self.first) < block_order(("output", 0)) else set()
        for name, patches in options.get("patches", {}).items():
            if patches and name not in harmless:
                return f"another node's {name} acts on the blocks before the perturbed layer"
        for name, replacements in options.get("patches_replace", {}).items():
            for key in replacements:
                if key[0] in _ORDER and block_order(key) < block_order(self.first):
                    return f"another node replaces {name} in a block before the perturbed layer"
        if "optimized_attention_override" in options:
            return "another node overrides every attention"
        if control is not None:
            if any(hint is not None for hint in control.get("input", ())):
                return "a T2I adapter acts on the encoder"
            if self.first[0] == "output":
                return "a ControlNet acts on the blocks before the perturbed layer"
        if any(torch.is_tensor(value) for value in kwargs.values()):
            return "the model takes inputs that only it knows"
        return None


def _take_rows(batch: torch.Tensor, num_rows: int, rows: Sequence[int]) -> torch.Tensor:
    """Whole rows out of [num_rows·B, ...]; by slices, for an index tensor would have to travel to the GPU first."""
    pieces = batch.chunk(num_rows)
    return torch.cat([pieces[row] for row in rows])


class _LateRows:
    """One forward: the rows that were left out, and how they come back."""

    def __init__(self, first: BlockKey, options: dict, context: torch.Tensor | None, sources: list[int]) -> None:
        self.first = first
        self.full = {key: options[key] for key in ("uuids", "cond_or_uncond")}
        self.context = context  # of all rows
        self.sources = sources  # for every row its place among the plain rows
        self.emb: torch.Tensor | None = None
        self.grown = False

    def grow(self, plain: torch.Tensor) -> torch.Tensor:
        """All rows, in the host's own order, from the plain ones."""
        return _take_rows(plain, max(self.sources) + 1, self.sources)

    def install(self, patches: dict) -> dict:
        return {**patches, _LAYER_PATCH: [(torch.nn.Module, self.layer)],
                _SKIP_PATCH: [self.skip, *patches.get(_SKIP_PATCH, ())]}

    def layer(self, layer, x, emb, context, options, output_shape, time_context, num_video_frames,
              image_only_indicator):
        """forward_timestep_embed_patch: fires for every layer of every block."""
        if not self.grown and options["block"] == self.first and isinstance(layer, SpatialTransformer):
            x, self.emb, self.grown = self.grow(x), self.grow(emb), True
            options.update(self.full)
        if self.grown:
            emb, context = self.emb, self.context
        # Without ourselves in the list, this is the host's own dispatch.
        ours = options["patches"]
        options["patches"] = {name: patch for name, patch in ours.items() if name != _LAYER_PATCH}
        try:
            return forward_timestep_embed((layer,), x, emb, context, options, output_shape, time_context,
                                          num_video_frames, image_only_indicator)
        finally:
            options["patches"] = ours

    def skip(self, h, skip, options):
        """output_block_patch: the encoder's skips come from before the rows were back."""
        if skip is not None and skip.shape[0] != h.shape[0]:
            skip = self.grow(skip)
        return h, skip
