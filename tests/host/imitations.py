"""What other people's packs do to a model, each kind in a few lines of our own: (model) -> a clone with it."""

from __future__ import annotations

import copy
import functools
import importlib.util
import random
import sys
from collections.abc import Callable
from types import MethodType, ModuleType, SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher, set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP

from . import models

Neighbour = Callable[[ModelPatcher], ModelPatcher]


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(inputs: dict, rows) -> dict:
    """The named inputs of a call with other rows: `rows` makes them from [B, ...]."""
    batch = inputs["input"].shape[0]

    def change(value):
        return rows(value) if isinstance(value, torch.Tensor) and value.shape[:1] == (batch,) else value
    return {**inputs, "input": rows(inputs["input"]), "timestep": rows(inputs["timestep"]),
            "c": {name: change(value) for name, value in inputs["c"].items()}}


def call(function, inputs: dict) -> torch.Tensor:
    return function(inputs["input"], inputs["timestep"], **inputs["c"])


def wrapped(wrapper: Callable) -> Neighbour:
    """With a model_function_wrapper: (function, the host's arguments) -> output."""
    def attach(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return model
    return attach


def tile_major(function, inputs: dict) -> torch.Tensor:
    """Two tiles a row in one call, all rows of the first tile before those of the second."""
    left, right = inputs["input"].chunk(2, dim=-1)
    both = rows_of(inputs, lambda value: torch.cat((value, value)))
    both["input"] = torch.cat((left, right))
    return torch.cat(call(function, both).chunk(2), dim=-1)


def tiles_in_turn(function, inputs: dict) -> torch.Tensor:
    return torch.cat([call(function, {**inputs, "input": tile}) for tile in inputs["input"].chunk(2, dim=-1)], dim=-1)


def with_residuals(change: Callable) -> Neighbour:
    """Residuals of a ControlNet changed on their way to the model: a tensor -> a tensor."""
    def inside(function, inputs: dict) -> torch.Tensor:
        control = {place: [hint if hint is None else change(hint) for hint in hints]
                   for place, hints in (inputs["c"].get("control") or {}).items()}
        return call(function, {**inputs, "c": {**inputs["c"], "control": control or None}})
    return wrapped(inside)


def tiles_with_residuals(function, inputs: dict) -> torch.Tensor:
    """Tile-major, with a ControlNet's residuals cut in the same way."""
    left, right = inputs["input"].chunk(2, dim=-1)
    both = rows_of(inputs, lambda value: torch.cat((value, value)))
    both["input"] = torch.cat((left, right))
    both["c"]["control"] = {place: [torch.cat(hint.chunk(2, dim=-1)) for hint in hints]
                            for place, hints in inputs["c"]["control"].items()}
    return torch.cat(call(function, both).chunk(2), dim=-1)


def mirrored_copy(function, inputs: dict) -> torch.Tensor:
    """A mirrored copy of every row behind them all."""
    both = rows_of(inputs, lambda value: torch.cat((value, value)))
    both["input"] = torch.cat((inputs["input"], inputs["input"].flip(-1)))
    there, mirrored = call(function, both).chunk(2)
    return 0.5 * (there + mirrored.flip(-1))


def one_more_row(function, inputs: dict) -> torch.Tensor:
    """One row more than the host has sent."""
    return call(function, rows_of(inputs, lambda value: torch.cat((value, value[:1]))))[:-1]


def one_by_one(function, inputs: dict) -> torch.Tensor:
    return torch.cat([call(function, rows_of(inputs, lambda value, i=i: value[i:i + 1]))
                      for i in range(inputs["input"].shape[0])])


def filled_up(function, inputs: dict) -> torch.Tensor:
    """Batches of four, whatever the host sends."""
    rows = inputs["input"].shape[0]
    return call(function, rows_of(inputs, lambda value: torch.cat((value, value[-1:].expand(
        -rows % 4, *value.shape[1:])))))[:rows]


def once_more(function, inputs: dict) -> torch.Tensor:
    """A second call, of what the first one made."""
    first = call(function, inputs)
    return 0.5 * (first + call(function, {**inputs, "input": inputs["input"] + 0.1 * first}))


def without_rows_names(function, inputs: dict) -> torch.Tensor:
    """The host's options made anew, without the names of the rows."""
    options = {key: value for key, value in inputs["c"]["transformer_options"].items() if key != "uuids"}
    return 0.9 * call(function, {**inputs, "c": {**inputs["c"], "transformer_options": options}})


def without_options(function, inputs: dict) -> torch.Tensor:
    """Nothing of the host's options is handed on."""
    return function(inputs["input"], inputs["timestep"], **{
        name: value for name, value in inputs["c"].items() if name != "transformer_options"})


def around_the_model(wrapper: Callable) -> Neighbour:
    """With the same in an APPLY_MODEL wrapper."""
    def inside(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        given = {**kwargs, "c_concat": c_concat, "c_crossattn": c_crossattn, "control": control,
                 "transformer_options": transformer_options}
        return wrapper(executor, {"input": x, "timestep": t, "c": given})

    def attach(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another", inside)
        return model
    return attach


def backwards(function, inputs: dict) -> torch.Tensor:
    return call(function, rows_of(inputs, lambda value: value.flip(0))).flip(0)


def counted_by_index() -> Neighbour:
    """A number of calls for the conditional and the unconditional row, and none for a third kind."""
    calls = {0: 0, 1: 0}

    def count(function, inputs: dict) -> torch.Tensor:
        for index in inputs["cond_or_uncond"]:
            calls[index] += 1
        return call(function, inputs)
    return wrapped(count)


def kept_by_index(model: ModelPatcher) -> ModelPatcher:
    """Inside the network's wrapper: what each index last had, of the shape it had then."""
    kept: dict[int, torch.Tensor] = {}

    def keep(executor, x, timesteps, *args, **kwargs):
        options = next(value for value in (*args, *kwargs.values()) if isinstance(value, dict) and "uuids" in value)
        out = executor(x, timesteps, *args, **kwargs)
        for index, rows in zip(options["cond_or_uncond"], out.chunk(len(options["cond_or_uncond"])), strict=True):
            rows += 0.0 * kept.get(index, rows)
            kept[{0: 0, 1: 1}[index]] = rows.clone()
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "kept", keep)
    return model


def first_block_subtracted(model: ModelPatcher) -> ModelPatcher:
    """A first-block cache that is never used: it takes the first block's output from the last one's."""
    network, seen = model.model.diffusion_model, {}

    def keep(executor, *args, **kwargs):
        first = network.input_blocks[1].register_forward_hook(lambda _, __, out: seen.update(first=out))
        last = network.output_blocks[-1].register_forward_hook(lambda _, __, out: seen.update(
            residual=out.mean((1, 2, 3)) - seen["first"].mean((1, 2, 3))))
        try:
            return executor(*args, **kwargs) + 0.0 * seen.get("residual", torch.zeros(1)).sum()
        finally:
            first.remove()
            last.remove()

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "first block", keep)
    return model


def cross_attention(patch: Callable) -> Neighbour:
    """With a patch of what the cross-attention looks at: (index of each row, keys of each row) -> keys of all rows."""
    def attn2(q, k, v, extra_options):
        index = extra_options["cond_or_uncond"]
        keys = patch(index, k.chunk(len(index)))
        return q, keys, keys

    def attach(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_attn2_patch(attn2)
        return model
    return attach


IMAGE = noise(1, 2, 1, 4, models.CONTEXT)  # an image prompt's tokens for the conditional and the unconditional row
OTHER = noise(2, 1, 14, models.CONTEXT)    # another region's text


def from_a_pair(index: list[int], keys) -> torch.Tensor:
    """As IPAdapter_plus: three rows are taken for (cond, uncond, cond)."""
    pair = (IMAGE[0], IMAGE[1], IMAGE[0]) if len(index) == 3 else (IMAGE[0], IMAGE[1])
    return torch.cat([torch.cat((rows, pair[i].expand(rows.shape[0], -1, -1)), 1)
                      for i, rows in zip(index, keys, strict=True)])


def of_index_0(index: list[int], keys) -> torch.Tensor:
    return torch.cat([rows + 0.3 * rows.flip(1) if i == 0 else rows for i, rows in zip(index, keys, strict=True)])


def of_index_1(index: list[int], keys) -> torch.Tensor:
    return torch.cat([rows if i != 1 else 0.5 * rows for i, rows in zip(index, keys, strict=True)])


def of_the_last_row(index: list[int], keys) -> torch.Tensor:
    """The conditional row is taken for the last one, as the host has it."""
    return torch.cat([*keys[:-1], 0.7 * keys[-1]])


def where_the_first_0_is(index: list[int], keys) -> torch.Tensor:
    if 0 not in index:
        return torch.cat(keys)
    place = index.index(0)
    return torch.cat([0.7 * rows if i == place else rows for i, rows in enumerate(keys)])


def couple(model: ModelPatcher) -> ModelPatcher:
    """Attention couple: two regions' attention is summed over all rows that are not the negative."""
    def split(q, k, v, extra_options):
        index = extra_options["cond_or_uncond"]
        queries, keys, extra_options["couple"] = [], [], []
        for i, rows, text in zip(index, q.chunk(len(index)), k.chunk(len(index)), strict=True):
            queries += [rows] if i == 1 else [rows, rows]
            keys += [text] if i == 1 else [text, OTHER.to(text).expand(rows.shape[0], -1, -1)]
            extra_options["couple"] += [1] if i == 1 else [0, 0]
        keys = [text[:, :7] for text in keys]
        return torch.cat(queries), torch.cat(keys), torch.cat(keys)

    def join(out, extra_options):
        index = extra_options["couple"]
        left = torch.zeros(1, 1, 8, 12, device=out.device)
        left[..., :6] = 1.0
        masks = [F.interpolate(mask, extra_options["activations_shape"][-2:]).flatten(1)[..., None]
                 for mask in (left, 1.0 - left)]
        pieces, summed = [], []
        for i, rows in zip(index, out.chunk(len(index)), strict=True):
            if i == 1:
                pieces.append(rows)
            else:
                summed.append(rows * masks[len(summed)])
        return torch.cat([*pieces, *([torch.stack(summed).sum(0)] if summed else [])])

    model = model.clone()
    model.set_model_attn2_patch(split)
    model.set_model_attn2_output_patch(join)
    return model


def negative_attention(model: ModelPatcher) -> ModelPatcher:
    """As a NAG: the rows before the first of index 1 are the positive ones, and have their attention pushed."""
    def attn2(q, k, v, extra_options):
        index = extra_options["cond_or_uncond"]
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        batch = q.shape[0] // len(index)
        for i, place in enumerate(index):
            rows = slice(i * batch, (i + 1) * batch)
            if place == 0:
                other = noise(3, 1, 7, k.shape[2]).to(q).expand(batch, -1, -1)
                away = optimized_attention(q[rows], other, other, extra_options["n_heads"])
                out[rows] += 0.5 * (out[rows] - away)
        return out

    model = model.clone()
    for block in (("input", 2), ("middle", 0), ("output", 0)):
        model.set_model_attn2_replace(attn2, *block)
    return model


def overridden(model: ModelPatcher) -> ModelPatcher:
    """An attention function of its own, as of sage or flash attention."""
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *args, **kwargs: 0.9 * function(*args, **kwargs))
    return model


def patched(kind: str, change: Callable) -> Neighbour:
    def attach(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_patch(change, kind)
        return model
    return attach


def feature_kept_for_later(model: ModelPatcher) -> ModelPatcher:
    """The encoder's feature of every row comes back in the decoder."""
    kept = {}

    def keep(h, options):
        kept["mean"] = h.mean((1, 2, 3), keepdim=True)
        return h

    def add(h, skip, options):
        return h * (1.0 + 0.2 * kept["mean"].tanh()), skip

    model = model.clone()
    model.set_model_input_block_patch(keep)
    model.set_model_output_block_patch(add)
    return model


def attention_kept_for_later(model: ModelPatcher) -> ModelPatcher:
    """As shared attention: what the encoder's attention looks at comes back in the decoder, row by row."""
    kept = {}

    def keep(q, k, v, options):
        if options["block"][0] == "input":
            kept["mean"] = v.mean((1, 2), keepdim=True)
        return q, k, v * (1.0 + kept["mean"]) if options["block"][0] == "output" else v

    model = model.clone()
    model.set_model_attn1_patch(keep)
    return model


def rows_mixed_by_attention(model: ModelPatcher) -> ModelPatcher:
    """As style alignment: every row's values have a part of the others'."""
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, q, k, v, *args, **kwargs: function(q, k, 0.8 * v + 0.2 * v.mean(0, keepdim=True), *args,
                                                            **kwargs))
    return model


def rows_mixed(kind: str, sigmas: tuple[float, float] = (1.0, 8.0)) -> Neighbour:
    """Every row has a part of the others', at these noise levels and in one block alone: by a patch of this kind, by
    what is in the place of an attention ("attn1", "attn2"), by the override, or by another forward of a module."""
    def mixed(t: torch.Tensor, options: dict) -> torch.Tensor:
        acts = sigmas[0] <= float(options["sigmas"].max()) <= sigmas[1] and options["block"] == ("input", 3)
        return 0.6 * t + 0.4 * t.mean(0, keepdim=True) if acts else t

    def attention(q, k, v, options):
        return mixed(optimized_attention(q, k, v, options["n_heads"]), options)

    def override(function, q, k, v, *args, transformer_options=None, **kwargs):
        return function(q, k, mixed(v, transformer_options), *args, transformer_options=transformer_options, **kwargs)

    def attach(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        if kind == "forward":
            path = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.forward"
            own = model.get_model_object(path)
            model.add_object_patch(path, lambda x, *args, transformer_options=None, **kwargs: mixed(own(
                x, *args, transformer_options=transformer_options, **kwargs), transformer_options))
        elif kind == "override":
            model.model_options["transformer_options"]["optimized_attention_override"] = override
        elif kind in ("attn1", "attn2"):
            getattr(model, f"set_model_{kind}_replace")(attention, "input", 3)
        elif kind in ("attn1_patch", "attn2_patch"):
            model.set_model_patch(lambda q, k, v, options: (mixed(q, options), k, mixed(v, options)), kind)
        else:
            model.set_model_patch(mixed, kind)
        return model
    return attach


def pushed_from_the_negative(model: ModelPatcher) -> ModelPatcher:
    """A cross-attention pushed away from the unconditional row's, where that is in the batch, from a noise level on."""
    def attn2(q, k, v, extra_options):
        index = extra_options["cond_or_uncond"]
        out = optimized_attention(q, k, v, extra_options["n_heads"]).chunk(len(index))
        if 1 not in index or float(extra_options["sigmas"].max()) > 8.0:
            return torch.cat(out)
        return torch.cat([1.5 * rows - 0.5 * out[index.index(1)] for rows in out])

    model = model.clone()
    model.set_model_attn2_replace(attn2, "input", 3)
    return model


LATER: dict[str, Neighbour] = {"pushed from the negative": pushed_from_the_negative, **{
    kind: rows_mixed(kind) for kind in ("attn1_patch", "attn1_output_patch", "middle_patch", "attn2_patch",
                                              "attn2_output_patch", "attn1", "attn2", "override", "forward")}}


def before_cfg(model: ModelPatcher) -> ModelPatcher:
    """As APG: the conditional prediction is another one before CFG."""
    model = model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: [0.9 * args["conds_out"][0], *args["conds_out"][1:]])
    return model


def changed_in_place(model: ModelPatcher) -> ModelPatcher:
    """As a multiplier of channels before CFG: the conditional prediction itself is changed."""
    def before(args: dict) -> list[torch.Tensor]:
        args["conds_out"][0][:, :2] *= 0.6
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(before)
    return model


def changed_in_place_by_cfg(model: ModelPatcher) -> ModelPatcher:
    def cfg(args: dict) -> torch.Tensor:
        args["cond_denoised"].mul_(0.6)
        return args["input"] - args["cond_denoised"]

    model = model.clone()
    model.set_model_sampler_cfg_function(cfg)
    return model


def options_copied_deeply(model: ModelPatcher) -> ModelPatcher:
    """As a guidance of its own before CFG: another call of the conditional rows, with an attention off."""
    import comfy.samplers

    def before(args: dict) -> list[torch.Tensor]:
        options = set_model_options_patch_replace(copy.deepcopy(args["model_options"]), lambda q, *_: torch.zeros_like(
            q), "attn1", "input", 1)
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], args["conds"][:1], args["input"], args["timestep"],
                                                 options)
        cond, *others = args["conds_out"]
        return [cond + 0.5 * (cond - weak), *others]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(before)
    return model


def attention_changed_in_place(model: ModelPatcher) -> ModelPatcher:
    """As frames laid out in a grid: what an attention is given is written over."""
    def attention(q, k, v, options):
        for t in (q, k, v):
            t[:, 1:] = t[:, 1:].flip(1)
        return optimized_attention(q, k, v, options["n_heads"])

    model = model.clone()
    for place in (("input", 1), ("middle", 0), ("output", 2)):
        model.set_model_attn1_replace(attention, *place)
    return model


def slot_taken(model: ModelPatcher) -> ModelPatcher:
    import comfy.samplers

    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(lambda args: [
        1.05 * out for out in comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"],
                                                             args["sigma"], args["model_options"])])
    return model


def slot_taken_before_cfg(model: ModelPatcher) -> ModelPatcher:
    return slot_taken(before_cfg(model))


def noise_on_what_enters(model: ModelPatcher) -> ModelPatcher:
    """As a reference that is noised anew in every call: the network's wrapper adds it to the latent."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "noise", lambda executor, x, *args, **kwargs: executor(
        x + 0.1 * torch.randn_like(x), *args, **kwargs))
    return model


def noise_on_the_text() -> Neighbour:
    """As CADS: a function wrapper adds it, from a generator of its own."""
    generator = torch.Generator().manual_seed(3)

    def add(function, inputs: dict) -> torch.Tensor:
        text = inputs["c"]["c_crossattn"]
        text = text + 0.3 * torch.randn(text.shape, generator=generator)
        return call(function, {**inputs, "c": {**inputs["c"], "c_crossattn": text}})
    return wrapped(add)


def mean_over_the_batch(model: ModelPatcher) -> ModelPatcher:
    """As Enhance-A-Video: the forward of an attention is replaced, and looks at all rows."""
    model = model.clone()
    for place in ("input_blocks.1.1", "middle_block.1"):
        path = f"diffusion_model.{place}.transformer_blocks.0.attn2.forward"
        own = model.get_model_object(path)
        model.add_object_patch(path, lambda x, *args, own=own, **kwargs: own(x, *args, **kwargs) * (
            1.0 + x.mean().tanh()))
    return model


def kept_on_a_module(model: ModelPatcher) -> ModelPatcher:
    """As a reference control: a first run of the network leaves rows on one of its modules, the second adds them."""
    model = model.clone()
    path = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    block = model.get_model_object(path)
    block.reference = SimpleNamespace(rows=[])

    def forward(self, x, context=None, transformer_options={}):  # noqa: B006 (as the host's)
        if transformer_options.get("is_reference"):
            self.reference.rows.append(x)
        elif self.reference.rows:
            x = torch.cat([x, self.reference.rows.pop()], dim=1).mean(1, keepdim=True) * 0.3 + x
        return type(self).forward(self, x, context, transformer_options)

    def twice(function, inputs: dict) -> torch.Tensor:
        options = {**inputs["c"]["transformer_options"], "is_reference": True}
        call(function, {**inputs, "input": 0.5 * inputs["input"], "c": {**inputs["c"], "transformer_options": options}})
        return call(function, inputs)

    model.add_object_patch(f"{path}.forward", MethodType(forward, block))
    return wrapped(twice)(model)


class _ByIndex(BasicTransformerBlock):
    """Rows under the index 1 are halved, and all are moved by their mean; there is no other index."""

    def forward(self, x, context=None, transformer_options={}):  # noqa: B006 (as the host's)
        out = super().forward(x, context, transformer_options)
        index = transformer_options["cond_or_uncond"]
        factor = torch.tensor([(1.0, 0.5)[i] for i in index]).repeat_interleave(len(x) // len(index))
        return 0.7 * out * factor[:, None, None] + 0.3 * out.mean(0, keepdim=True)


def block_of_another_class(model: ModelPatcher) -> ModelPatcher:
    """As a reference network: a block is made one of the pack's own class."""
    path = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    block = copy.copy(model.get_model_object(path))
    block.__class__ = _ByIndex
    vars(block).pop("forward", None)  # the host leaves the module's own there, where a patch of it was taken back
    model = model.clone()
    model.add_object_patch(path, block)
    return model


def of_other_classes(model: ModelPatcher) -> ModelPatcher:
    """As a pack that brings the host's networks along, changed: during the sampling the network and its parts are of
    its classes, none of which is derived from the host's."""
    attention, u_net = map(_brought_along, (SpatialTransformer, UNetModel))
    vars(u_net)["SpatialTransformer"] = attention.SpatialTransformer
    model = model.clone()
    for name, part in model.model.diffusion_model.named_modules():
        for module in (attention, u_net):
            if type(part).__module__.endswith(module.__name__.rpartition(".")[2]):
                path = ".".join(filter(None, ("diffusion_model", name, "__class__")))
                model.add_object_patch(path, getattr(module, type(part).__name__))
                # Where a patch of one was taken back, the host leaves its own class's method there.
                for left in [key for key, value in vars(part).items() if isinstance(value, MethodType)]:
                    delattr(part, left)
    return model


@functools.cache
def _brought_along(cls: type) -> ModuleType:
    """Another pack's copy of the module in which the host defines a class."""
    own = sys.modules[cls.__module__]
    assert own.__file__
    spec = importlib.util.spec_from_file_location(f"other_pack.{cls.__module__.rpartition('.')[2]}", own.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    module.__package__ = own.__package__  # for what it imports
    spec.loader.exec_module(module)
    return module


def with_hooks(model: ModelPatcher, hooks: dict[str, Callable]) -> ModelPatcher:
    """This model, for the length of a run with torch's own hooks: {module: what it gives -> what it is to give}."""
    network = model.model.diffusion_model

    def outer_sample(executor, *args, **kwargs):
        handles = [network.get_submodule(name).register_forward_hook(lambda _, __, out, change=change: change(out))
                   for name, change in hooks.items()]
        try:
            return executor(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "hooks", outer_sample)
    return model


def hooked(model: ModelPatcher) -> ModelPatcher:
    """Hooks on a block and on an attention inside one: these mix the rows."""
    return with_hooks(model.clone(), {
        "input_blocks.3.1": lambda out: 0.9 * out,
        "input_blocks.3.1.transformer_blocks.0.attn2": lambda out: 0.6 * out + 0.4 * out.mean(0, keepdim=True)})


def patched_inside(model: ModelPatcher) -> ModelPatcher:
    """A wrapper around the network brings a patch, which mixes the rows."""
    def bring(executor, x, timesteps, *args, **kwargs):
        def patch(q, k, v, options):
            return 0.6 * q + 0.4 * q.mean(0, keepdim=True), k, v

        *args, options = args if isinstance(args[-1], dict) else (*args, kwargs.pop("transformer_options"))
        return executor(x, timesteps, *args, {**options, "patches": {"attn2_patch": [patch]}}, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "patches", bring)
    return model


class _Counting(torch.nn.Module):
    """A patch that is a module, and tells the seven layers apart by counting its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, out: torch.Tensor, options: dict) -> torch.Tensor:
        self.calls += 1
        return out * (1.0 + 0.05 * (self.calls % 7))


def counting(attach: Callable, places: int = 7) -> Neighbour:
    """It tells the layers, or whatever it has so many `places` of, apart by counting its calls, wherever it sits."""
    def neighbour(model: ModelPatcher) -> ModelPatcher:
        model, calls = model.clone(), 0

        def scaled(out: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return out * (1.0 + 0.05 * (calls % places))

        attach(model, scaled)
        return model
    return neighbour


def in_forwards(model: ModelPatcher, scaled: Callable, of: str = ".ff") -> None:
    for name, _ in model.model.diffusion_model.named_modules():
        if name.endswith(of):
            path = f"diffusion_model.{name}.forward"
            own = model.get_model_object(path)
            model.add_object_patch(path, lambda *args, own=own, **kwargs: scaled(own(*args, **kwargs)))


def in_hooks(model: ModelPatcher, scaled: Callable) -> None:
    with_hooks(model, {name: scaled for name, _ in model.model.diffusion_model.named_modules() if name.endswith(".ff")})


def in_a_patch_from_a_wrapper(model: ModelPatcher, scaled: Callable) -> None:
    def bring(executor, x, timesteps, context, y, control, options, **kwargs):
        patches = {**options.get("patches", {}), "attn2_output_patch": [
            *options.get("patches", {}).get("attn2_output_patch", []), lambda out, _: scaled(out)]}
        return executor(x, timesteps, context, y, control, {**options, "patches": patches}, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "a patch that counts", bring)


def count_on_the_network(model: ModelPatcher) -> ModelPatcher:
    """As with hooks, but the count is an attribute of the network."""
    network = model.model.diffusion_model
    network.calls_of_another_pack = 0

    def scaled(out: torch.Tensor) -> torch.Tensor:
        network.calls_of_another_pack += 1
        return out * (1.0 + 0.05 * (network.calls_of_another_pack % 7))

    model = model.clone()
    in_hooks(model, scaled)
    return model


def between_blocks(model: ModelPatcher, scaled: Callable) -> None:
    model.set_model_input_block_patch(lambda h, options: scaled(h))


def in_a_private_method(model: ModelPatcher, scaled: Callable) -> None:
    own = model.get_model_object("diffusion_model._forward")
    model.add_object_patch("diffusion_model._forward", lambda *args, **kwargs: scaled(own(*args, **kwargs)))


def method_beside_a_wrapper_that_names_the_network(model: ModelPatcher) -> ModelPatcher:
    model, network = model.clone(), model.model.diffusion_model
    own = model.get_model_object("diffusion_model._forward")

    def around(executor, *args) -> list[torch.Tensor]:
        network.last_of_another_pack = executor(*args)
        return network.last_of_another_pack

    model.add_object_patch("diffusion_model._forward", lambda *args, **kwargs: 0.8 * own(*args, **kwargs))
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "kept on the network", around)
    return model


def scaled_by_chance(draw: Callable[[], float]) -> Neighbour:
    """Queries are scaled by a random number in every call of a patch."""
    def attach(model: ModelPatcher) -> ModelPatcher:
        random.seed(0)
        np.random.seed(0)
        return patched("attn1_patch", lambda q, k, v, options: ((1.0 + draw()) * q, k, v))(model)
    return attach


class _Slotted:
    """An object without a __dict__."""

    __slots__ = ("left",)


def kept_in_slots(model: ModelPatcher) -> ModelPatcher:
    """What a patch before an attention leaves there, the one behind it takes out."""
    kept = _Slotted()

    def leave(q, k, v, options):
        kept.left = 1.2
        return q, k, v

    def take(out, options):
        factor, kept.left = kept.left, 0.5
        return factor * out

    model = model.clone()
    model.set_model_attn1_patch(leave)
    model.set_model_attn1_output_patch(take)
    return model


def kept_in_the_options(model: ModelPatcher) -> ModelPatcher:
    """A momentum: what a function after CFG keeps in the model_options from step to step."""
    def after(args: dict) -> torch.Tensor:
        kept = args["model_options"].setdefault("momentum of another pack", {})
        last = kept.get("last", args["denoised"])
        kept["last"] = args["denoised"]
        return args["denoised"] + 0.5 * (args["denoised"] - last)

    model = model.clone()
    model.set_model_sampler_post_cfg_function(after)
    return model


NEIGHBOURS: dict[str, Neighbour] = {
    "tiles, tile-major": wrapped(tile_major), "tiles in turn": wrapped(tiles_in_turn),
    "a mirrored copy of all rows": wrapped(mirrored_copy), "one more row": wrapped(one_more_row),
    "one by one": wrapped(one_by_one), "backwards": wrapped(backwards),
    "the names of the rows dropped": wrapped(without_rows_names),
    "one by one, around the model": around_the_model(one_by_one),
    "backwards, around the model": around_the_model(backwards),
    "filled up, around the model": around_the_model(filled_up),
    "once more, around the model": around_the_model(once_more),
    "counted by index": lambda model: counted_by_index()(model), "kept by index": kept_by_index,
    "a first-block cache": first_block_subtracted,
    "image tokens from a pair": cross_attention(from_a_pair), "index 0": cross_attention(of_index_0),
    "index 1": cross_attention(of_index_1), "the last row": cross_attention(of_the_last_row),
    "the first index 0": cross_attention(where_the_first_0_is), "attention couple": couple,
    "negative attention": negative_attention, "an attention override": overridden,
    "an attn1 patch": patched("attn1_patch", lambda q, k, v, options: (0.7 * q, k, v)),
    "an input-block patch": patched("input_block_patch", lambda h, options: 0.9 * h),
    "an input-block patch that mixes rows": patched(
        "input_block_patch", lambda h, options: 0.8 * h + 0.2 * h.mean(0, keepdim=True)),
    "rows mixed by attention": rows_mixed_by_attention, "attention kept for later": attention_kept_for_later,
    "a feature kept for later": feature_kept_for_later, "before CFG": before_cfg,
    "the slot taken, before CFG": slot_taken_before_cfg,
    "a prediction changed in place": changed_in_place, "and by CFG": changed_in_place_by_cfg,
    "options copied deeply": options_copied_deeply, "attention changed in place": attention_changed_in_place,
    "noise on what enters": noise_on_what_enters, "noise on the text": lambda model: noise_on_the_text()(model),
    "a mean over the batch": mean_over_the_batch, "kept in the options": kept_in_the_options,
    "Python's random numbers": scaled_by_chance(random.random),
    "numpy's random numbers": scaled_by_chance(np.random.rand), "kept in slots": kept_in_slots,
    "kept on a module": kept_on_a_module, "hooks": hooked, "a block of another class": block_of_another_class,
    "all of other classes": of_other_classes,
    "a patch from a wrapper": patched_inside,
    "forwards that count": counting(in_forwards), "hooks that count": counting(in_hooks),
    "hooks that count on the network": count_on_the_network,
    "a patch from a wrapper that counts": counting(in_a_patch_from_a_wrapper),
    "a patch that is a module": lambda model: patched("attn2_output_patch", _Counting())(model),
}
CHANGES_NOTHING = {"one by one", "one more row", "backwards", "counted by index", "kept by index",
                   "a first-block cache", "one by one, around the model", "backwards, around the model",
                   "filled up, around the model", "all of other classes"}
