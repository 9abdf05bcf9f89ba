"""Whether anything of another node has a part in the calls of a step.

Where nothing has, the weak rows can run in the host's one call. Otherwise they get a call of their own, so that the
host's call stays exactly what it is without PAG: what others wrote for pairs of rows, for the host's order of rows or
for their number never meets ours. Told by what is attached to the model, not by a list of packs; the picture is the
same either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import comfy.samplers
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import nn

from ..hooks import proof
from ..hooks.attention import OVERRIDE
from ..hooks.proof import Trials
from ..hooks.remembered import is_others, is_others_hook
from ..models.structure import parts_of
from ..models.units import is_u_net

KEY = "perturbed_attention_guidance"  # of whatever we attach ourselves
_AROUND_CALLS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
FUNCTION_WRAPPER = "model_function_wrapper"
CALC_COND_BATCH = "sampler_calc_cond_batch_function"
PRE_CFG, POST_CFG = "sampler_pre_cfg_function", "sampler_post_cfg_function"
COMPILED = "the model is compiled"
_ATTENTIONS = {"attn1": proof.ATTENTION, "attn2": proof.TEXT_ATTENTION}  # in patches_replace
_FRAMES = (SpatialVideoTransformer, VideoResBlock)
_SAMPLE_WISE = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm)
# In transformer_options: the host's own, and what its networks leave there for the blocks of a forward, which older
# hosts give the same dict in every forward of a call.
_HOSTS = ("patches", "patches_replace", "wrappers", "callbacks", "uuids", "cond_or_uncond", "original_shape",
          "activations_shape", "img_slice", "grid_sizes", "reference_image_num_tokens")


def others_in_options(model_options: dict) -> str | None:
    """Which attachment of another node acts on the calls of this step, or None."""
    options = model_options.get("transformer_options", {})
    if FUNCTION_WRAPPER in model_options:
        return "another node wraps the model's function"
    if "multigpu_clones" in model_options:
        return "the batch is split over several GPUs"
    if is_compiled(model_options):
        return COMPILED
    for kind in _AROUND_CALLS:
        if has_others(options.get("wrappers", {}).get(kind, {})):
            return "another node wraps the model's calls"
    if any(options.get("patches", {}).values()):
        return "another node patches the network's blocks"
    if any(options.get("patches_replace", {}).values()):
        return "another node replaces attention layers or blocks"
    if OVERRIDE in options:
        return "another node overrides attention"
    return None


def wrappers_around_calls(model_options: dict) -> list[Callable]:
    """What other nodes have put around the calls of the model and of its network."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    found = [model_options[FUNCTION_WRAPPER]] if FUNCTION_WRAPPER in model_options else []
    return found + [wrapper for kind in _AROUND_CALLS for key, some in wrappers.get(kind, {}).items()
                    if key not in (KEY, COMPILE_KEY) for wrapper in some]


def is_hosts(function: Callable) -> bool:
    """Whether a function or a callable object is ComfyUI's own."""
    where = getattr(function, "__module__", None) or type(function).__module__
    return where.partition(".")[0] in ("comfy", "comfy_extras", "comfy_api")


def name_of(function: Callable) -> str:
    """A function by its pack and node; ComfyUI names the modules of a pack by the path of its folder."""
    named = getattr(function, "func", function)
    named = named if hasattr(named, "__qualname__") else type(named)
    module = re.split(r"[/\\]", named.__module__ or "")[-1]
    return f"{module}.{named.__qualname__}".replace(".<locals>", "")


def attachments(model_options: dict) -> list:
    """All that other nodes have attached, and that may remember something from call to call."""
    options = model_options.get("transformer_options", {})
    between = [patch for name, found in options.get("patches", {}).items() if not _is_in_units(name) for patch in found]
    between += [patch for name, found in options.get("patches_replace", {}).items() if name not in _ATTENTIONS
                for patch in found.values()]
    return wrappers_around_calls(model_options) + in_units(options) + between


def others_in_conds(conds: list[dict]) -> str | None:
    """Which attachment of a conditioning acts on the calls in which it runs, or None."""
    if any(cond.get("control") is not None for cond in conds):
        return "a ControlNet acts on the rows"
    if any("gligen" in cond for cond in conds):
        return "GLIGEN patches the rows"
    if any(cond.get("hooks") is not None for cond in conds):
        return "a prompt has hooks that act on its rows"
    return None


def others_in_network(network: nn.Module) -> str | None:
    """Whether another pack has put its own code in the place of the host's, for this network or for all, or None."""
    if comfy.samplers.calc_cond_batch.__module__ != comfy.samplers.__name__:
        return f"{comfy.samplers.calc_cond_batch.__module__} replaces ComfyUI's calc_cond_batch"
    for module in (network, *network.children()):
        defined = next((cls for cls in type(module).__mro__ if "forward" in vars(cls)), None)
        if defined is not None and getattr(vars(defined)["forward"], "__module__", None) != defined.__module__:
            return f"{vars(defined)['forward'].__module__} replaces the forward of {defined.__name__}"
    if other_code(network):
        return "another node puts code of its own into the network"
    if other_forwards(network):
        return "another node replaces the forward of a module"
    if any(True for _ in other_hooks([network])):
        return "another node hooks a module"
    if any(hasattr(module, "_orig_mod") for module in parts_of(network)):
        return COMPILED
    return None


def other_code(network: nn.Module) -> bool:
    """Whether another node has given a network of the host's a method, or modules of a class of its own. A network that
    is another pack's as a whole is not meant."""
    methods = (value for value in vars(network).values() if callable(value) and not isinstance(value, type))
    return _is_of_host(network) and (any(is_others(getattr(method, "__module__", None)) for method in methods)
                                     or any(map(_is_of_others, parts_of(network))))


def _is_of_host(network: nn.Module) -> bool:
    return any(map(is_hosts, type(network).__mro__)) or is_u_net(network)


def _is_of_others(part: nn.Module) -> bool:
    """Whether a module's class is another pack's; not of one without parts, as a quantized layer is."""
    return is_others(type(part).__module__) and next(part.children(), None) is not None


def other_forwards(module: nn.Module, network: nn.Module | None = None) -> list[nn.Module]:
    """Those of a module and the modules inside it that another node has given a forward of its own, also by a class of
    its own where the network around them is the host's."""
    return _with_other_forward(parts_of(module), network)


def _with_other_forward(parts: Iterable[nn.Module], network: nn.Module | None) -> list[nn.Module]:
    has_others = network is not None and _is_of_host(network)

    def is_other(part: nn.Module) -> bool:
        if has_others and _is_of_others(part):
            return True
        # The host leaves the module's own there, where a patch of it was taken back.
        own = vars(part).get("forward")
        return (own is not None and not hasattr(part, "_orig_mod")
                and getattr(own, "__func__", own) is not type(part).forward)

    return list(filter(is_other, parts))


class OtherHook(NamedTuple):
    """A hook that another node has registered: the module, its hooks, and the key of this one."""

    module: nn.Module
    hooks: dict
    key: int


def other_hooks(modules: Iterable[nn.Module]) -> Iterator[OtherHook]:
    """Those of these modules and the modules inside."""
    return _other_hooks(part for module in modules for part in parts_of(module))


def _other_hooks(parts: Iterable[nn.Module]) -> Iterator[OtherHook]:
    for part in parts:
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key, hook in hooks.items():
                if is_others_hook(hook):
                    yield OtherHook(part, hooks, key)


def others_act_in(parts: Sequence[nn.Module], network: nn.Module) -> bool:
    """Whether another node's code acts in one of these parts of a network, by a hook or a forward of its own."""
    return bool(_with_other_forward(parts, network)) or any(True for _ in _other_hooks(parts))


def is_compiled(model_options: dict) -> bool:
    """Whether the host's TorchCompileModel, or a node built like it, compiles this model's calls."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    return COMPILE_KEY in wrappers.get(WrappersMP.APPLY_MODEL, {})


def wraps_network(options: dict) -> bool:
    """Whether another node wraps the network, by the transformer_options of a forward."""
    return has_others(options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}))


def sees_samples(options: dict, modules: Sequence[nn.Module]) -> bool:
    """Whether anything in these modules or around the network may treat a sample by what others there are, or by where
    it is, and cannot be tried for some samples alone: layers of frames, which see each other, modules of another
    node's, or a wrapper, by the transformer_options of a forward."""
    def is_known(part: nn.Module) -> bool:
        return isinstance(part, _SAMPLE_WISE) or not (isinstance(part, _FRAMES) or is_others(type(part).__module__))

    return wraps_network(options) or not all(is_known(part) for module in modules for part in parts_of(module))


def looks_between_units(model_options: dict) -> bool:
    """Whether another node may look at what goes from one block to the next."""
    options = model_options.get("transformer_options", {})
    return (FUNCTION_WRAPPER in model_options or any(options.get("patches", {}).values())
            or any(name not in _ATTENTIONS for name in options.get("patches_replace", {}))
            or wraps_network(options))


def in_units(options: dict) -> list:
    """What other nodes have attached that acts inside the blocks, by the transformer_options of a forward, and what it
    may keep in these."""
    patches = options.get("patches", {})
    found = [patch for name in patches if _is_in_units(name) for patch in patches[name]]
    found += [patch for name in _ATTENTIONS for patch in options.get("patches_replace", {}).get(name, {}).values()]
    if OVERRIDE in options:
        found.append(options[OVERRIDE])
    return found + kept_in(options)


def in_reach(options: dict) -> list:
    """Of these, what any of them may call or look at."""
    return kept_in(options) + ([options[OVERRIDE]] if OVERRIDE in options else [])


def kept_in(options: dict) -> list:
    """What other nodes may keep in the transformer_options of a forward."""
    return [value for name, value in options.items() if isinstance(value, (dict, list)) and name not in _HOSTS]


def with_tried(options: dict, trials: Trials) -> dict:
    """A copy of a forward's transformer_options in which all functions of other nodes that act inside the blocks are
    tried."""
    tried = {}
    for kind, change in (("patches", _tried_patches), ("patches_replace", _tried_replacements)):
        if changed := change(options.get(kind, {}), trials):
            tried[kind] = {**options[kind], **changed}
    if OVERRIDE in options:
        tried[OVERRIDE] = trials.tried(options[OVERRIDE], proof.OVERRIDE)
    return {**options, **tried}


def _tried_patches(patches: dict, trials: Trials) -> dict:
    return {name: [trials.tried(patch, proof.PATCH) for patch in found] for name, found in patches.items()
            if found and _is_in_units(name)}


def _tried_replacements(replaced: dict, trials: Trials) -> dict:
    """An attention to the text costs little, and one to the image much."""
    return {name: {key: trials.tried(function, kind) for key, function in replaced[name].items()}
            for name, kind in _ATTENTIONS.items() if replaced.get(name)}


def _is_in_units(patch: str) -> bool:
    return patch.startswith("attn") or patch in ("middle_patch", "mlp_patch")


def has_others(wrappers: dict) -> bool:
    """Whether there are any but ours among the wrappers of one kind."""
    return any(found for key, found in wrappers.items() if key != KEY)
