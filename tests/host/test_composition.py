"""PAG beside the host's own nodes that act on the whole network or on the conditioning, with the shared prefix on.

The reference is the sequential one: the host's own PAG node, whose perturbed pass is a call of its own. Nodes that
keep something of one row for another (EasyCache) are compared with our own whole pass instead, for there the host's
node shares the plain rows' cache.
"""

import functools
from dataclasses import replace

import comfy.context_windows
import comfy.controlnet
import comfy.gligen
import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy.cli_args import PerformanceFeature, args
from comfy.ldm.modules.attention import SpatialTransformer
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .composed import HOST
from .composed import WHOLE as OUR_WHOLE_PASS
from .runs import Run, host_pag, patched, relative_error
from .test_without_prompt import controlled as with_control_net

SCALE = 3.0
WHOLE = PAGOptions(share_prefix=False)
LATENT = models.empty_latent(2, 16, 16)


def first(output):
    """A node's first output, of either schema."""
    return output[0] if isinstance(output, tuple) else output.result[0]


class Hint(comfy.controlnet.ControlBase):
    """A ControlNet without a network: residuals that depend on the input, at one place of the U-Net."""

    def __init__(self, place: str, channels: int, shrink: int) -> None:
        super().__init__()
        self.place, self.channels, self.shrink = place, channels, shrink

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        pooled = torch.nn.functional.avg_pool2d(x_noisy.mean(1, keepdim=True), self.shrink)
        hint = 0.3 * pooled.expand(-1, self.channels, -1, -1)
        empty = {"input": [], "middle": [], "output": []}
        return {**empty, self.place: [hint.clone()]}

    def get_models(self):
        return []

    def pre_run(self, *_):
        pass

    def copy(self):
        return self


def controlled(place: str, channels: int, shrink: int, both: bool) -> Run:
    hint = Hint(place, channels, shrink)
    negative = models.conditioning(2, control=hint) if both else models.conditioning(2)
    return Run(latent=LATENT, positive=models.conditioning(1, control=hint, control_apply_to_uncond=False),
               negative=negative)


def with_lora_hook(model) -> Run:
    weight = model.model.diffusion_model.middle_block[1].proj_in.weight
    change = 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    hook = comfy.hooks.create_hook_lora(lora={"diffusion_model.middle_block.1.proj_in.diff": change},
                                        strength_model=1.0, strength_clip=0.0)
    return Run(latent=LATENT, positive=models.conditioning(1, hooks=hook))


def lora_on_the_model(model):
    """Of the value projection of the perturbed layer, where it changes what the identity leaves."""
    weight = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_v.weight
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator) for shape in ((weight.shape[0], 4), (4, weight.shape[1])))
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v"
    return comfy.sd.load_lora_for_models(
        model, None, {f"{key}.lora_up.weight": 0.1 * up, f"{key}.lora_down.weight": 0.1 * down}, 1.0, 0.0)[0]


@functools.cache
def another_sd15():
    model = models.sd15.__wrapped__()
    with torch.inference_mode(False):
        models.fill_with_noise(model.model.diffusion_model, seed=1)
    return model


def grounded(model) -> Run:
    """GLIGEN: the host's own network, small and random, with one box for the positive prompt."""
    network = model.model.diffusion_model
    layers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    modules = [comfy.gligen.GatedSelfAttentionDense(layer.proj_in.weight.shape[0], models.CONTEXT, 4, 8)
               for layer in layers]
    gligen = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(models.CONTEXT, models.CONTEXT), models.CONTEXT)
    models.fill_with_noise(gligen)
    with torch.no_grad():
        for module in modules:
            module.alpha_attn.fill_(1.0)
            module.alpha_dense.fill_(1.0)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(gligen, load_device=cpu, offload_device=cpu)
    box = (models.conditioning(4, tokens=1)[0][0][:, 0], 8, 8, 4, 2)  # text, height, width, y, x
    return Run(latent=LATENT, positive=models.conditioning(1, gligen=("position", patcher, [box])))


def two_regions() -> Run:
    left, right = (models.conditioning(seed, area=(16, 8, 0, start), strength=1.0)[0]
                   for seed, start in ((1, 0), (3, 8)))
    return Run(latent=LATENT, positive=[left, right])


def masked_region() -> Run:
    mask = torch.zeros(1, 16, 16)
    mask[:, :, :8] = 1.0
    return Run(latent=LATENT, positive=[models.conditioning(1)[0], models.conditioning(3, mask=mask)[0]])


def in_time() -> Run:
    early, late = (models.conditioning(seed, start_percent=start, end_percent=end)[0]
                   for seed, start, end in ((1, 0.0, 0.4), (3, 0.4, 1.0)))
    return Run(latent=LATENT, positive=[early, late])


MODELS = {
    "FreeU": lambda model: first(FreeU.execute(model, 1.3, 1.4, 0.9, 0.2)),
    "FreeU V2": lambda model: first(FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)),
    "HyperTile on another layer": lambda model: first(HyperTile.execute(model, 32, 2, 0, False)),
    "token merging on another layer": lambda model: first(TomePatchModel.execute(model, 0.5)),
    "RescaleCFG": lambda model: first(RescaleCFG().patch(model, 0.7)),
    "NAG": lambda model: first(NAGuidance.execute(model, 2.0, 0.5, 1.5)),
    "LoRA on the model": lora_on_the_model,
    "model merging": lambda model: ModelMergeSimple().merge(model, another_sd15(), 0.6)[0],
}
RUNS = {
    "GLIGEN": grounded,
    "ControlNet": lambda _: replace(with_control_net(), latent=LATENT),
    "ControlNet, middle": lambda _: controlled("middle", 64, 4, both=True),
    "T2I adapter, encoder": lambda _: controlled("input", 32, 1, both=True),
    "ControlNet on the positive prompt only": lambda _: controlled("middle", 64, 4, both=False),
    "LoRA on the positive prompt only": with_lora_hook,
    "two regions": lambda _: two_regions(),
    "a masked region": lambda _: masked_region(),
    "prompts that take turns": lambda _: in_time(),
    "prompts of different lengths": lambda _: Run(latent=LATENT, positive=models.conditioning(1, tokens=77)),
}


@pytest.mark.in_turn("layers")
@pytest.mark.parametrize("layers", ["m0", "u0"])
@pytest.mark.parametrize("name", MODELS)
def test_beside_a_model_patch(name, layers, composed):
    run = Run(latent=LATENT)
    model = MODELS[name](models.sd15())
    assert relative_error(run.ksampler(model), run.ksampler(models.sd15())) > 1e-4, "the other node must do something"
    result = run.model_patch(model, SCALE, layers)
    # Token merging draws new numbers in every call, so a separate pass merges others.
    separate = layers == "m0" and name != "token merging on another layer"
    reference = run.ksampler(host_pag(model, SCALE)) if separate else run.model_patch(model, SCALE, layers, WHOLE)
    composed.check(name, HOST if separate else OUR_WHOLE_PASS, result, reference)
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.in_turn("layers")
@pytest.mark.parametrize("layers", ["m0", "u0"])
@pytest.mark.parametrize("name", RUNS)
def test_beside_conditioning(name, layers, composed):
    model = models.sd15()
    run = RUNS[name](model)
    assert relative_error(run.ksampler(model), Run(latent=LATENT).ksampler(model)) > 1e-4
    result = run.model_patch(model, SCALE, layers)
    if layers == "m0":
        composed.check(name, HOST, result, run.ksampler(host_pag(model, SCALE)))
    else:
        composed.check(name, OUR_WHOLE_PASS, result, run.model_patch(model, SCALE, layers, WHOLE))
    assert relative_error(result, run.ksampler(model)) > 1e-3


def test_apg_sees_the_two_predictions_it_expects(composed):
    """APG changes the conditional prediction before CFG, so the host's own PAG measures from the changed one."""
    run = Run(latent=LATENT)
    model = first(APG.execute(models.sd15(), 0.0, 5.0, 0.0))
    result = run.model_patch(model, SCALE)
    composed.check("APG", OUR_WHOLE_PASS, result, run.model_patch(model, SCALE, "m0", WHOLE))
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_easy_cache_does_not_mix_perturbed_with_plain_rows(cfg, composed):
    """The host's own node takes the plain rows' cached prediction for the perturbed one, and then adds nothing."""
    run = Run(cfg=cfg, steps=8, latent=LATENT)
    model = first(EasyCacheNode.execute(models.sd15(), 0.5, 0.0, 1.0, False))
    deltas: list[float] = []

    def watch(args):
        deltas.append(relative_error(args["denoised"], args["cond_denoised"]))
        return args["denoised"]

    guided = patched(model, SCALE)
    if cfg == 1.0:
        guided.set_model_sampler_post_cfg_function(watch)
    result = run.ksampler(guided)
    assert all(delta > 1e-5 for delta in deltas)
    composed.check("EasyCache", OUR_WHOLE_PASS, result, run.ksampler(patched(model, SCALE, "m0", WHOLE)))


@pytest.mark.parametrize("layers", ["m0", "d1", "u0"])
def test_context_windows(layers, composed):
    """Windows over the batch, as over the frames of a video."""
    run = Run(latent=models.empty_latent(6, 8, 8))
    model = models.sd15().clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"), context_length=4, context_overlap=1,
        context_stride=1, closed_loop=False, dim=0)
    result = run.model_patch(model, SCALE, layers)
    composed.check("context windows", OUR_WHOLE_PASS, result, run.model_patch(model, SCALE, layers, WHOLE))
    if layers == "m0":
        composed.check("context windows", HOST, result, run.ksampler(host_pag(model, SCALE)))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_half_precision_stays_within_the_noise_of_a_rebatched_pass(dtype):
    """The shared prefix differs from the whole pass no more than one whole pass from another batching of itself."""
    model = functools.partial(_in_dtype, dtype)
    run = Run(cfg=7.0, latent=LATENT)
    whole = run.ksampler(patched(model(), SCALE, "m0", WHOLE))
    separate = run.ksampler(host_pag(model(), SCALE))
    shared = run.ksampler(patched(model(), SCALE))
    assert torch.isfinite(shared).all()
    assert relative_error(shared, whole) <= 2 * relative_error(separate, whole) + 1e-6


@pytest.mark.in_turn("layers")
@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("layers", ["m0", "u0"])
def test_weights_that_are_stored_smaller_than_they_are_computed(weights, layers, composed):
    """The host's manual cast, as for fp8 files; computed in fp32, so the usual limit holds."""
    run, model = Run(latent=LATENT), models.sd15_stored_as(weights)
    assert model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_v.weight.dtype == weights
    name = f"{str(weights).removeprefix('torch.')} weights"
    result = run.model_patch(model, SCALE, layers)
    composed.check(name, OUR_WHOLE_PASS, result, run.model_patch(model, SCALE, layers, WHOLE))
    if layers == "m0":
        composed.check(name, HOST, result, run.ksampler(host_pag(model, SCALE)))
    assert relative_error(result, run.ksampler(model)) > 1e-3


def test_the_hosts_fast_option(composed, monkeypatch):
    """All its features asked for; on a CPU they change little, and the nodes read none of them."""
    monkeypatch.setattr(args, "fast", set(PerformanceFeature))
    run, model = Run(latent=LATENT), models.sd15_stored_as.__wrapped__(torch.float8_e4m3fn)
    composed.check("--fast", HOST, run.model_patch(model, SCALE), run.ksampler(host_pag(model, SCALE)))


def _in_dtype(dtype):
    """SD 1.5 with weights and computation in half precision."""
    model = models.sd15().clone()
    model.set_model_compute_dtype(dtype)
    return model


def test_an_ip_adapter_like_patch_finds_the_conditional_tensors_for_our_rows(composed):
    """Such packs look each row's image tokens up in a pair, by the host's index of its conditioning."""
    image = torch.randn(2, 1, 4, models.CONTEXT, generator=torch.Generator().manual_seed(0))  # of cond and uncond

    def attn2_patch(n, context, value, extra_options):
        batch = n.shape[0] // len(extra_options["cond_or_uncond"])
        tokens = torch.cat([(image[0], image[1])[i].expand(batch, -1, -1) for i in extra_options["cond_or_uncond"]])
        return n, torch.cat((context, tokens), 1), torch.cat((value, tokens), 1)

    run = Run(latent=LATENT)
    model = models.sd15().clone()
    model.set_model_patch(attn2_patch, "attn2_patch")
    composed.check("IP-Adapter-like attn2 patches", HOST, run.model_patch(model, SCALE),
                   run.ksampler(host_pag(model, SCALE)))
