"""On a device that is not the CPU everything runs as on the CPU: no tensor is on the wrong side, and nothing waits.

`support.stand_in_gpu` is the device, or with PAG_TEST_GPU=cuda a real one; the host is told that it is there, and does
the rest itself.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable

import comfy.model_management
import pytest
import torch
from benchmark import bench, gradient, networks
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from pag_pack.nodes.comparison import PAGGrid
from pag_pack.nodes.guidance import PAGGuider
from pag_pack.nodes.host.hooks.joint import JointPrefix
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.distillation import PAGSDSImageGradient
from pag_pack.nodes.research.restoration import PAGDPSSampler, PAGMeasure, PAGMeasurement
from pag_pack.pag_core.guidance import RESCALE_MODES
from pag_pack.pag_core.perturbation import KINDS, Perturbation
from pag_pack.pag_core.schedule import SCHEDULES
from pag_pack.pag_core.settings import PAGOptions
from support import real_gpu, stand_in_gpu
from torch.utils._pytree import tree_map_only

from . import imitations, models
from .family_models import CASES, forward
from .older import what_older_hosts_lack
from .runs import WAYS, Run, relative_error
from .test_distillation import guider, optimized
from .test_families import PERTURBED, PLAIN, Patcher, patch
from .test_family_sampling import errors, sampled
from .test_head_search import clip, clip_vision, search
from .test_inspection import inspect
from .test_modalities import SETTINGS
from .test_modalities import guider as av_guider
from .test_psld import run as psld_run
from .test_psld import sampler as psld_sampler
from .test_psld import vae
from .test_restoration import last_sigmas, picture, restore
from .test_sound import HOW

SCALE = 3.0
NAME = real_gpu.NAME or stand_in_gpu.NAME
PRECISE = real_gpu.TOLERANCE if real_gpu.NAME else 1e-5
ONE_OF_255 = 1.01 / 255  # what a rounding decides in a picture
on_a_real_one = pytest.mark.skipif(not real_gpu.NAME, reason="for a real GPU: PAG_TEST_GPU=cuda")
ways = pytest.mark.parametrize("sample", WAYS.values(), ids=WAYS)
families = pytest.mark.parametrize("family", [models.sd15, models.sdxl, models.flux])
both_kinds = pytest.mark.parametrize(("family", "heads"), [(models.sd15, "m0:h0+2"), (models.flux, "single.1:h0+2")],
                                     ids=["U-Net", "transformer"])


@pytest.fixture
def gpu(monkeypatch):
    """The device, which the host loads models onto."""
    free = comfy.model_management.get_free_memory
    with real_gpu.in_use() if real_gpu.NAME else stand_in_gpu.stand_in() as gpu:
        monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: gpu.device)
        monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(comfy.model_management, "get_free_memory",
                            lambda _=None, torch_free_too=False: free(torch.device("cpu"), torch_free_too))
        yield gpu
        comfy.model_management.unload_all_models()


def on(device: torch.device, family: Callable[[], ModelPatcher]) -> ModelPatcher:
    """The family's model, to be loaded onto the device."""
    model = family.__wrapped__()
    model.load_device = device
    return model


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = real_gpu.TOLERANCE) -> bool:
    """Bit for bit on the stand-in, which computes on the CPU; as far as single precision goes on a real GPU."""
    if real_gpu.NAME:
        return relative_error(found.cpu(), expected) < tolerance
    return torch.equal(found, expected)


def look_alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """As above; of pictures on a real GPU one value in a hundred may be another, for they show figures whose last digit
    may be."""
    if real_gpu.NAME:
        return ((found.cpu() - expected).abs() > ONE_OF_255).float().mean() < 0.01
    return torch.equal(found, expected)


def run(family, **settings) -> Run:
    channels = 16 if family is models.flux else 4
    return Run(latent={"samples": torch.zeros(2, channels, 8, 12)}, **settings)


@pytest.mark.in_turn("sample")
@pytest.mark.parametrize("cfg", [1.0, 7.0])
@ways
@families
def test_pictures_are_those_of_the_cpu(family, sample, cfg, gpu):
    ran = run(family, cfg=cfg)
    expected = sample(ran, family(), SCALE, "auto")
    model = on(gpu.device, family)
    assert agree(sample(ran, model, SCALE, "auto"), expected)
    assert {weight.device.type for weight in model.model.diffusion_model.parameters()} == {NAME}


BESIDE = {
    "the slot is taken": imitations.slot_taken, "tiles": imitations.wrapped(imitations.tiles_in_turn),
    "a cache": imitations.first_block_subtracted, "another attention": imitations.overridden,
}
MORE = (imitations.feature_kept_for_later, imitations.mean_over_the_batch, imitations.attention_kept_for_later,
        imitations.negative_attention, imitations.couple, imitations.kept_by_index, imitations.before_cfg,
        imitations.slot_taken_before_cfg, imitations.kept_in_the_options, imitations.rows_mixed_by_attention)
WRAPPERS = (imitations.tile_major, imitations.mirrored_copy, imitations.one_more_row, imitations.filled_up,
            imitations.once_more, imitations.without_rows_names, imitations.backwards, imitations.one_by_one)
ALL_BESIDE = {
    **{f.__name__: f for f in MORE}, **{f.__name__: imitations.wrapped(f) for f in WRAPPERS},
    **{f"{f.__name__} around the model": imitations.around_the_model(f) for f in WRAPPERS},
}


def check_beside(beside: imitations.Neighbour, gpu) -> None:
    """The host leaves the texts on the CPU until the network runs."""
    ran = run(models.sd15)
    expected = ran.pag_ksampler(beside(models.sd15()), SCALE)
    found = ran.pag_ksampler(beside(on(gpu.device, models.sd15)), SCALE)
    assert relative_error(found, expected) < PRECISE


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_beside_others(beside, gpu):
    check_beside(beside, gpu)


@pytest.mark.slow
@pytest.mark.parametrize("beside", ALL_BESIDE.values(), ids=ALL_BESIDE)
def test_beside_all_kinds_of_others(beside, gpu):
    check_beside(beside, gpu)


OPTIONS = {
    **{f"perturbation {kind}": PAGOptions(perturbation=kind) for kind in KINDS if not KINDS[kind].acts_on_block},
    **{f"rescale {mode}": PAGOptions(rescale=0.7, rescale_mode=mode) for mode in RESCALE_MODES},
    **{f"schedule {schedule}": PAGOptions(schedule=schedule, adaptive_scale=0.01) for schedule in SCHEDULES},
    "reuse_every": PAGOptions(reuse_every=2), "strength": PAGOptions(strength=0.5),
    "range": PAGOptions(end_percent=0.6), "preview": PAGOptions(preview="delta"),
    "whole pass": PAGOptions(share_prefix=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@both_kinds
def test_every_option_works(family, heads, options, gpu):
    if family is models.flux and KINDS[options.perturbation].needs_grid:
        pytest.skip("for layers whose tokens lie in a picture")
    ran = run(family, steps=2)
    expected = ran.model_patch(family(), SCALE, heads, options)
    assert agree(ran.model_patch(on(gpu.device, family), SCALE, heads, options), expected)


def crossings(gpu, sample: Callable[[Run], object], family, cfg: float) -> Counter:
    """What happens between the device and the CPU because of two more steps, by kind."""
    found = []
    for steps in (2, 4):
        gpu.crossings.clear()
        sample(run(family, steps=steps, cfg=cfg))
        found.append(gpu.crossings.copy())
    return found[1] - found[0]


@pytest.mark.parametrize("cfg", [pytest.param(1.0, marks=pytest.mark.slow), 7.0])
@families
def test_no_step_waits_for_the_device(family, cfg, gpu):
    """A step that only queues work keeps the device busy: PAG's has no more to wait for than the host's own."""
    model = on(gpu.device, family)
    run(family).ksampler(model)  # loads it
    host = crossings(gpu, lambda ran: ran.ksampler(model), family, cfg)
    assert crossings(gpu, lambda ran: ran.model_patch(model, SCALE, "auto"), family, cfg) == host


@pytest.mark.slow
@both_kinds
def test_options_wait_only_for_what_they_have_to_know(family, heads, gpu):
    """The noise level, once a step, where the scale or the randomness depends on it; random numbers are the CPU's."""
    model = on(gpu.device, family)
    run(family).ksampler(model)
    host = crossings(gpu, lambda ran: ran.ksampler(model), family, 7.0)
    known = Counter({real_gpu.WAITED if real_gpu.NAME else "_local_scalar_dense": 2})
    for name, options in OPTIONS.items():
        kind = KINDS[options.perturbation]
        if kind.is_random or options.preview == "delta" or (family is models.flux and kind.needs_grid):
            continue
        depends = options.schedule != "constant" or options.reuse_every > 1 or options.end_percent < 1.0
        more = crossings(gpu, lambda ran, options=options: ran.model_patch(model, SCALE, heads, options), family, 7.0)
        assert more - host == (known if depends else Counter()), name


@both_kinds
def test_weights_that_do_not_fit_stay_with_the_cpu(family, heads, gpu, monkeypatch):
    """The host then brings them over where they are needed, layer by layer."""
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    model = on(gpu.device, family)
    for layers in ("auto", heads):
        expected = run(family).model_patch(family(), SCALE, layers)
        assert agree(run(family).model_patch(model, SCALE, layers), expected)
    assert {weight.device.type for weight in model.model.diffusion_model.parameters()} == {"cpu"}


@both_kinds
def test_rows_dealt_out_over_two_devices(family, heads, gpu):
    """As the host's MultiGPU node does it; here one of them is the CPU."""
    pytest.importorskip("comfy.multigpu")  # not in older hosts
    model, second = on(gpu.device, family), family.__wrapped__()
    second.model.current_patcher = second
    rows = []

    def outer_sample(executor, *args, **kwargs):
        guider = executor.class_obj
        guider.model_options["multigpu_clones"] = {gpu.device: guider.model_patcher, torch.device("cpu"): second}
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "two devices", outer_sample)
    second.get_model_object("diffusion_model").register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for layers in ("auto", heads):
        ran = run(family, negative=models.conditioning(2, tokens=14))
        expected = ran.model_patch(family(), SCALE, layers)
        assert relative_error(ran.model_patch(model, SCALE, layers), expected) < max(PRECISE, 1e-4)
    assert rows, "the second device must have taken part"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family(case, gpu):
    """Its last layer, which the perturbed row joins late: what our hooks into its network make is where it belongs."""
    network = case.build().requires_grad_(False)

    def run(device: torch.device) -> torch.Tensor:
        inputs, sigmas = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (case.batch(), torch.ones(1)))
        ours = patch(network.to(device), case.layers[-1], Perturbation())
        units = model_layers(Patcher(network)).units(network)
        first = min(units.places[key] for key in ours.layers)
        options = {"uuids": [PERTURBED, PLAIN], "cond_or_uncond": [1, 0], "sigmas": sigmas, "sample_sigmas": sigmas}
        prefix = JointPrefix(units, first, {PERTURBED: PLAIN}, lambda _: None)
        with prefix.around(options, len(options["uuids"]) * case.frames), \
                ours.around(network, options, PERTURBED.__eq__, lambda _: None, ()) as options:
            return forward(network, inputs, options)

    with what_older_hosts_lack(RuntimeError):
        expected = run(torch.device("cpu"))
    found = run(gpu.device)
    assert found.device.type == NAME
    assert agree(found.cpu(), expected)


def grid(model: ModelPatcher, first_stage) -> tuple[torch.Tensor, ...]:
    ran = Run()
    return PAGGrid.execute(model, 5, 2, 4.0, "0, 3", "m0", "identity\nseg", "euler", "normal", ran.positive,
                           ran.negative, ran.latent, first_stage, cell_size=64).result


def test_inspecting_and_comparing(request):
    expected = (*inspect(Run(), models.sd15()), *grid(models.sd15(), vae()))
    gpu = request.getfixturevalue("gpu")
    model = on(gpu.device, models.sd15)
    (latent, *pictures), (same, *expected) = (*inspect(Run(), model), *grid(model, vae())), expected
    assert agree(latent, same)
    for found, same in zip(pictures, expected, strict=True):
        assert look_alike(found, same)


def test_video_and_sound_apart(request):
    ran = sampled(HOW, 1.0, 1)
    scales = SETTINGS["Lightricks' defaults"]
    expected = ran.advanced(av_guider(HOW.build(), ran, scales))
    gpu = request.getfixturevalue("gpu")
    model = on(gpu.device, functools.cache(HOW.build))
    assert max(errors(ran.advanced(av_guider(model, ran, scales)), expected)) <= PRECISE


def test_searching_heads(request, tmp_path, monkeypatch):
    monkeypatch.setattr("folder_paths.output_directory", str(tmp_path))
    reference = torch.rand(1, 64, 96, 3)

    def found(model: ModelPatcher, **score) -> tuple:
        return search(Run(steps=2), model, vae(), "m0:h0-1", **score)

    def scored(model: ModelPatcher) -> list[tuple]:
        return [found(model, score="pixels", reference=reference),
                found(model, score="reference", clip_vision=clip_vision(), reference=reference),
                found(model, score="prompt", clip_vision=clip_vision(), clip=clip(), prompt=["a dog"])]

    expected = scored(models.sd15())
    shutil.rmtree(tmp_path)
    gpu = request.getfixturevalue("gpu")
    for (text, grids, layers), same in zip(scored(on(gpu.device, models.sd15)), expected, strict=True):
        assert (text, layers) == (same[0], same[2])
        assert agree(grids, same[1], ONE_OF_255)


def ordinary(network: torch.nn.Module, device: torch.device) -> None:
    """On the device, as ordinary tensors; the stand-in's cannot be made ordinary where a gradient needs them."""
    if real_gpu.NAME:
        return
    with torch.inference_mode(False):
        network.to(device)


@pytest.mark.slow
def test_restoring(request):
    def dps(model) -> torch.Tensor:
        operator = PAGMeasurement.execute("gaussian_blur").result[0]
        blurred = PAGMeasure.execute(picture(size=32), operator, 0.05, 3).result[0]
        label = PAGADMClassLabel.execute(model, -1).result[0]
        guider = PAGGuider.execute(model, label, label, 1.0, SCALE, "auto").result[0]
        return restore(guider, PAGDPSSampler.execute(blurred, operator, 1.0, eta=0.0).result[0], last_sigmas(model),
                       size=32)

    expected = psld_run(psld_sampler(vae())), dps(PAGADMLoader.execute(SHIPPED).result[0])
    gpu = request.getfixturevalue("gpu")
    latent_model, first_stage = on(gpu.device, models.sd15), vae()
    pixel_model = PAGADMLoader.execute(SHIPPED).result[0]
    for network in (latent_model.model, first_stage.first_stage_model, pixel_model.model):
        ordinary(network, gpu.device)
    found = psld_run(psld_sampler(first_stage), latent_model), dps(pixel_model)
    for restored, picture_of_cpu in zip(found, expected, strict=True):
        # Where autograd looks on, torch has no fused attention for the stand-in.
        assert relative_error(restored, picture_of_cpu) < 1e-4


def test_the_gradient_of_an_image(request):
    image, first_stage = torch.rand(1, 16, 16, 3), vae()
    gradient_of_latent = {"samples": torch.randn_like(first_stage.encode(image))}
    expected = PAGSDSImageGradient.execute(image, first_stage, gradient_of_latent).result[0]
    gpu, first_stage = request.getfixturevalue("gpu"), vae()
    ordinary(first_stage.first_stage_model, gpu.device)
    assert relative_error(PAGSDSImageGradient.execute(image, first_stage, gradient_of_latent).result[0],
                          expected) < 1e-4


def test_distilling(gpu):
    """One step: in the next ones the host's noise is another on every kind of device."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    assert agree(optimized(guider(on(gpu.device, models.sd15)), latent, steps=1),
                 optimized(guider(models.sd15()), latent, steps=1))


@pytest.mark.parametrize("label", [-1, 3])
def test_the_shipped_model(label, request):
    def sample() -> torch.Tensor:
        model, _ = PAGADMLoader.execute(SHIPPED).result
        run = Run(positive=PAGADMClassLabel.execute(model, label).result[0],
                  negative=PAGADMClassLabel.execute(model, -1).result[0], latent={"samples": torch.zeros(2, 3, 32, 32)})
        return run.pag_ksampler(model, SCALE, "auto")

    expected = sample()
    request.getfixturevalue("gpu")
    assert agree(sample(), expected)


HALF = {torch.float16: 0.02, torch.bfloat16: 0.1}


@on_a_real_one
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("beside", [lambda model: model, imitations.overridden], ids=["alone", "beside another node"])
@families
def test_half_precision(family, beside, dtype, gpu):
    """A call for all rows, and one for the perturbed row from the kept state on, against a whole pass of its own. What
    rounding changes is small beside what PAG does."""
    model = on(gpu.device, family)
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    ran = run(family)
    plain = ran.ksampler(beside(model))
    whole, shared = (ran.model_patch(beside(model), SCALE, "auto", PAGOptions(share_prefix=share))
                     for share in (False, True))
    assert relative_error(shared, whole) < HALF[dtype] * relative_error(whole, plain)


@pytest.mark.slow
def test_the_benchmark_runs(gpu, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 1)
    found = bench.measure(networks.NARROW, NAME, repeats=1, only="beside,shared")
    assert all(seconds > 0 for seconds in found["seconds"].values())
    gradient.Problem(networks.NARROW, has_vae=True).gradient(NAME, checkpointing=True)()
