"""The perturbed rows start where they begin to differ.

Up to the first perturbed layer a perturbed row equals its conditional row, so computing it again is waste: on SD 1.5
with the middle block, about two thirds of the pass. Inside the host's one batched call the perturbed rows are taken out
before the network and put back, as copies of their conditional rows, at the first block that holds a perturbed layer.
Only public hooks are used; wherever one of them is taken, or anything else acts on the rows before that block, the
whole pass runs instead, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed

BlockKey = tuple[str, int]
SPLIT_BATCH = "the host runs the conditional and the perturbed rows in separate calls (low memory or MultiGPU)"
_ORDER = {"input": 0, "middle": 1, "output": 2}
_LAYER_PATCH, _SKIP_PATCH = "forward_timestep_embed_patch", "output_block_patch"


class _Probe(SpatialTransformer):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, *args, **kwargs):
        return False


@cache
def host_asks_before_layers() -> bool:
    """Whether the host's U-Net offers every layer to a forward_timestep_embed_patch, as 0.24.1 does.

    0.18.2 and older only ask about layers of kinds that they do not know.
    """
    patches = {_LAYER_PATCH: [(_Probe, lambda *args: True)]}
    return forward_timestep_embed((_Probe(),), None, None, transformer_options={"patches": patches})


def block_order(key: Sequence) -> tuple[int, int]:
    """Sorts (kind, number, ...) by the order in which a U-Net runs its blocks."""
    return _ORDER[key[0]], key[1]


@dataclass(frozen=True)
class RowPlan:
    """Which rows of one forward are left out at first, and from which rows they come back.

    Attributes:
        plain: the rows that run from the start, by their place in the host's batch.
        places: for every row of the host's batch, its place in `plain`, or that of the row it copies.
    """

    plain: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, uuids: Sequence[UUID], conds: Sequence[int], sources: Mapping[UUID, UUID]) -> RowPlan | None:
        """The plan for the rows of a call, or None where a perturbed row's conditional row is in another call.

        Args:
            uuids, conds: the host's "uuids" and "cond_or_uncond"; the conditional rows have the index 0.
            sources: {uuid of a perturbed row: uuid of the conditional row that it copies}.
        """
        plain = [i for i, row in enumerate(uuids) if row not in sources]
        of_cond = {uuids[i]: place for place, i in enumerate(plain) if conds[i] == 0}
        places = [of_cond.get(sources[row]) if row in sources else plain.index(i) for i, row in enumerate(uuids)]
        return None if None in places else cls(tuple(plain), tuple(places))

    def leave_out(self, batch: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """The plain rows of a tensor with rows·B (or a multiple) along this axis."""
        return _take(batch, len(self.places), self.plain, axis)

    def put_back(self, plain: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """All rows, in the host's order, from the plain ones."""
        return _take(plain, len(self.plain), self.places, axis)


def _take(batch: torch.Tensor, num_rows: int, rows: Sequence[int], axis: int) -> torch.Tensor:
    """Whole rows, by slices, for an index tensor would have to travel to the GPU first."""
    pieces = batch.chunk(num_rows, axis)
    return torch.cat([pieces[row] for row in rows], axis)


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
        # For other nodes' patches a perturbed row is a conditional row. Those that look their tensors up in a pair
        # (IP-Adapter) know no index 2, and those that search for the conditional row (NAG) must not find ours first:
        # -2 is the first of a pair, and no 0.
        options["cond_or_uncond"] = [-2 if row in self.sources else cond
                                     for row, cond in zip(uuids, conds, strict=True)]
        if self.first is None or not any(row in self.sources for row in uuids):
            return executor(x, timesteps, context, y, control, options, **kwargs)
        plan = RowPlan.of(uuids, conds, self.sources)
        reason = self._obstacle(plan, control, options, kwargs)
        if reason:
            self.decline(reason)
            return executor(x, timesteps, context, y, control, options, **kwargs)

        late, rows = _LateRows(self.first, options, context, plan), len(x)
        options["uuids"] = [uuids[i] for i in plan.plain]
        options["cond_or_uncond"] = [conds[i] for i in plan.plain]
        options["patches"] = late.install(options.get("patches", {}))
        x, timesteps, context, y = (None if t is None else plan.leave_out(t) for t in (x, timesteps, context, y))
        if control is not None:
            # The host adds these to the encoder's skips before our patch sees them, hence to the plain rows alone.
            control = {**control, "output": [plan.leave_out(hint) if hint is not None and len(hint) == rows else hint
                                             for hint in control.get("output", ())]}
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def _obstacle(self, plan: RowPlan | None, control: dict | None, options: dict, kwargs: dict) -> str | None:
        """Why the rows cannot be left out of the blocks before `first`, or None."""
        if plan is None:
            return SPLIT_BATCH
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
            # In the middle block itself its residual comes after the layer, and all others go to the skips.
            if self.first[0] != "middle":
                return "a ControlNet acts on the blocks before the perturbed layer"
        if any(torch.is_tensor(value) for value in kwargs.values()):
            return "the model takes inputs that only it knows"
        return None


class _LateRows:
    """One forward: the rows that were left out, and how they come back."""

    def __init__(self, first: BlockKey, options: dict, context: torch.Tensor | None, plan: RowPlan) -> None:
        self.first = first
        self.full = {key: options[key] for key in ("uuids", "cond_or_uncond")}
        self.context = context  # of all rows
        self.plan = plan
        self.emb: torch.Tensor | None = None
        self.grown = False

    def install(self, patches: dict) -> dict:
        return {**patches, _LAYER_PATCH: [(torch.nn.Module, self.layer)],
                _SKIP_PATCH: [self.skip, *patches.get(_SKIP_PATCH, ())]}

    def layer(self, layer, x, emb, context, options, output_shape, time_context, num_video_frames,
              image_only_indicator):
        """forward_timestep_embed_patch: fires for every layer of every block."""
        if not self.grown and options["block"] == self.first and isinstance(layer, SpatialTransformer):
            x, self.emb, self.grown = self.plan.put_back(x), self.plan.put_back(emb), True
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
            skip = self.plan.put_back(skip)
        return h, skip
