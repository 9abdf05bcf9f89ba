"""PAG beside the host's own nodes that act on the whole network or on the conditioning, with the shared prefix on.

The reference is the sequential one: the host's own PAG node, whose perturbed pass is a call of its own. Nodes that
keep something of one row for another (EasyCache) are compared with our own whole pass instead, for there the host's
node shares the plain rows' cache.
"""

import functools

import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, host_pag, patched, relative_error

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
}
RUNS = {
    "ControlNet, decoder": lambda _: controlled("output", 32, 1, both=True),
    "ControlNet, middle": lambda _: controlled("middle", 64, 4, both=True),
    "T2I adapter, encoder": lambda _: controlled("input", 32, 1, both=True),
    "ControlNet on the positive prompt only": lambda _: controlled("middle", 64, 4, both=False),
    "LoRA on the positive prompt only": with_lora_hook,
    "two regions": lambda _: two_regions(),
    "a masked region": lambda _: masked_region(),
    "prompts that take turns": lambda _: in_time(),
    "prompts of different lengths": lambda _: Run(latent=LATENT, positive=models.conditioning(1, tokens=77)),
}


@pytest.mark.parametrize("layers", ["m0", "u0"])
@pytest.mark.parametrize("change", MODELS.values(), ids=MODELS)
def test_beside_a_model_patch(change, layers):
    run = Run(latent=LATENT)
    model = change(models.sd15())
    assert relative_error(run.ksampler(model), run.ksampler(models.sd15())) > 1e-4, "the other node must do something"
    result = run.model_patch(model, SCALE, layers)
    # Token merging draws new numbers in every call, so a separate pass merges others.
    separate = layers == "m0" and change is not MODELS["token merging on another layer"]
    reference = run.ksampler(host_pag(model, SCALE)) if separate else run.model_patch(model, SCALE, layers, WHOLE)
    assert relative_error(result, reference) < 1e-4
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.parametrize("layers", ["m0", "u0"])
@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_beside_conditioning(make, layers):
    model = models.sd15()
    run = make(model)
    assert relative_error(run.ksampler(model), Run(latent=LATENT).ksampler(model)) > 1e-4
    result = run.model_patch(model, SCALE, layers)
    reference = run.ksampler(host_pag(model, SCALE)) if layers == "m0" else run.model_patch(model, SCALE, layers, WHOLE)
    assert relative_error(result, reference) < 1e-4
    assert relative_error(result, run.ksampler(model)) > 1e-3


def test_apg_sees_the_two_predictions_it_expects():
    """APG changes the conditional prediction before CFG, so the host's own PAG measures from the changed one."""
    run = Run(latent=LATENT)
    model = first(APG.execute(models.sd15(), 0.0, 5.0, 0.0))
    result = run.model_patch(model, SCALE)
    assert relative_error(result, run.model_patch(model, SCALE, "m0", WHOLE)) < 1e-4
    assert relative_error(result, run.ksampler(model)) > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_easy_cache_does_not_mix_perturbed_with_plain_rows(cfg):
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
    assert relative_error(result, run.ksampler(patched(model, SCALE, "m0", WHOLE))) < 1e-4


@pytest.mark.parametrize("layers", ["m0", "d1", "u0"])
def test_context_windows(layers):
    """Windows over the batch, as over the frames of a video."""
    run = Run(latent=models.empty_latent(6, 8, 8))
    model = models.sd15().clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"), context_length=4, context_overlap=1,
        context_stride=1, closed_loop=False, dim=0)
    result = run.model_patch(model, SCALE, layers)
    assert relative_error(result, run.model_patch(model, SCALE, layers, WHOLE)) < 1e-4
    if layers == "m0":
        assert relative_error(result, run.ksampler(host_pag(model, SCALE))) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_the_noise_of_a_rebatched_pass(dtype):
    """The shared prefix differs from the whole pass no more than one whole pass from another batching of itself."""
    model = functools.partial(_in_dtype, dtype)
    run = Run(cfg=7.0, latent=LATENT)
    whole = run.ksampler(patched(model(), SCALE, "m0", WHOLE))
    separate = run.ksampler(host_pag(model(), SCALE))
    shared = run.ksampler(patched(model(), SCALE))
    assert torch.isfinite(shared).all()
    assert relative_error(shared, whole) <= 2 * relative_error(separate, whole) + 1e-6


def _in_dtype(dtype):
    """SD 1.5 with weights and computation in half precision."""
    model = models.sd15().clone()
    model.set_model_compute_dtype(dtype)
    return model


def test_an_ip_adapter_like_patch_finds_the_conditional_tensors_for_our_rows():
    """Such packs look each row's image tokens up in a pair, by the host's index of its conditioning."""
    image = torch.randn(2, 1, 4, models.CONTEXT, generator=torch.Generator().manual_seed(0))  # of cond and uncond

    def attn2_patch(n, context, value, extra_options):
        batch = n.shape[0] // len(extra_options["cond_or_uncond"])
        tokens = torch.cat([(image[0], image[1])[i].expand(batch, -1, -1) for i in extra_options["cond_or_uncond"]])
        return n, torch.cat((context, tokens), 1), torch.cat((value, tokens), 1)

    run = Run(latent=LATENT)
    model = models.sd15().clone()
    model.set_model_patch(attn2_patch, "attn2_patch")
    result = run.model_patch(model, SCALE)
    assert relative_error(result, run.ksampler(host_pag(model, SCALE))) < 1e-4
