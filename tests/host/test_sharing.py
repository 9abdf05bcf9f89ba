"""What PAG costs beside others: the prefix is shared in every set-up but one, at the undisturbed ratio of FLOPs."""

import uuid
from types import MethodType

import comfy.model_base
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import set_model_options_patch_replace
from comfy_extras.nodes_easycache import EasyCacheNode
from pag_pack.pag_core.settings import PAGOptions
from torch.utils.flop_counter import FlopCounterMode

from . import models
from .imitations import (
    Neighbour,
    around_the_model,
    backwards,
    cross_attention,
    from_a_pair,
    mirrored_copy,
    of_index_0,
    of_the_last_row,
    one_by_one,
    overridden,
    tile_major,
    with_hooks,
    without_rows_names,
    wrapped,
)
from .runs import Run, identity, patched, relative_error
from .sampled_families import SAMPLED
from .test_composition import MODELS, controlled
from .test_family_sampling import sampled as of_family

SCALE = 3.0
WHOLE = PAGOptions(share_prefix=False)
BUILDS = {"sd15": (models.sd15, 4, "m0"), "flux": (models.flux, 16, "auto")}


def sampled(name: str, **changes) -> Run:
    return Run(**{"latent": {"samples": torch.zeros(1, BUILDS[name][1], 16, 16)},
                  "negative": models.conditioning(2, tokens=14), **changes})


def flops(call) -> tuple[int, torch.Tensor]:
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def override(model):
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *args, **how: f(*args, **how)
    return model


def counting_override(model):
    """It tells the layers apart by the number of its calls."""
    calls, layers = 0, 14 if hasattr(model.model.diffusion_model, "input_blocks") else 5

    def count(f, *args, **how):
        nonlocal calls
        calls += 1
        return (1.0 - 0.02 * (calls % layers)) * f(*args, **how)

    model.model_options["transformer_options"]["optimized_attention_override"] = count
    return model


def attention_patch(model):
    model.set_model_attn1_patch(lambda n, context, value, options: (n * 1.01, context, value))
    return model


def image_prompt(model):
    """Two image prompts, looked up by the index of each row, as IP-Adapters do."""
    def replace(q, k, v, options):
        rows = options["cond_or_uncond"]
        shift = torch.cat([torch.full((len(q) // len(rows), 1, 1), (0.1, -0.2)[row]) for row in rows])
        return optimized_attention(q, k, v, options["n_heads"]) + shift

    for block in (("input", 1), ("output", 3)):
        model.set_model_attn2_replace(replace, *block)
    return model


def block_patch(block: str, number: int):
    def patched(model):
        model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", block, number)
        return model
    return patched


def function_wrapper(model):
    model.set_model_unet_function_wrapper(lambda f, args: f(args["input"], args["timestep"], **args["c"]))
    return model


def easy_cache(model):
    return EasyCacheNode.execute(model, 0.0001, 0.0, 1.0, False)[0]


ANY = {"an attention override": override, "an override that counts": counting_override,
       "a function wrapper": function_wrapper, "EasyCache": easy_cache}
SET_UPS = [
    *(("sd15", name, change) for name, change in {
        **ANY, "an attention patch": attention_patch, "image prompts": image_prompt,
        **{name: MODELS[name] for name in ("HyperTile on another layer", "FreeU V2")}}.items()),
    *(("flux", name, change) for name, change in {
        **ANY, "a block patch before": block_patch("double_block", 0),
        "a block patch behind": block_patch("single_block", 2)}.items()),
]


def undisturbed(name: str) -> float:
    build, _, layers = BUILDS[name]
    run = sampled(name)
    return flops(lambda: run.model_patch(build(), SCALE, layers))[0] / flops(lambda: run.ksampler(build()))[0]


@pytest.mark.parametrize(("name", "_", "change"), SET_UPS, ids=lambda value: value if isinstance(value, str) else "")
def test_beside_another_node(name, _, change):
    build, _, layers = BUILDS[name]
    run, model = sampled(name), change(build().clone())
    cost, result = flops(lambda: run.model_patch(model, SCALE, layers))
    assert cost / flops(lambda: run.ksampler(model))[0] <= undisturbed(name) + 0.03
    assert relative_error(result, run.model_patch(model, SCALE, layers, WHOLE)) < 1e-4


def mixing_rows(model, steps):
    """In these steps of the run what a row gets depends on the number of rows, as where a node ends at some sigma."""
    step = None

    def note(apply_model, args):
        nonlocal step
        step = step_of[round(float(args["timestep"].max()), 4)]
        return apply_model(args["input"], args["timestep"], **args["c"])

    def mix(q, k, v, options):
        out = optimized_attention(q, k, v, options["n_heads"])
        return out * (1.0 + 0.1 * len(options["cond_or_uncond"])) if step in steps else out

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", LONG).tolist()
    step_of = {round(sigma, 4): number for number, sigma in enumerate(sigmas)}
    model = model.clone()
    model.set_model_unet_function_wrapper(note)
    for block in (("input", 1), ("input", 4)):
        model.set_model_attn1_replace(mix, *block)
    return model


LONG = 12


@pytest.mark.parametrize(("steps", "shared"), [(range(2), 10), (range(3), 7), (range(3, 5), 10),
                                               (range(0, LONG, 2), 2), (range(LONG), 0)], ids=str)
def test_the_prefix_is_shared_again_when_others_no_longer_mix_rows(steps, shared):
    run = sampled("sd15", steps=LONG, scheduler="normal")
    model = mixing_rows(models.sd15(), steps)
    cost, result = flops(lambda: run.model_patch(model, SCALE, "m0"))
    plain, extra = flops(lambda: run.ksampler(model))[0], undisturbed("sd15") - 1.0
    assert relative_error(result, run.model_patch(model, SCALE, "m0", WHOLE)) < 1e-4
    assert LONG * (1.5 - cost / plain) / (0.5 - extra) > shared - 0.1


MOVING = {**{f.__name__: wrapped(f) for f in (tile_major, mirrored_copy, one_by_one, without_rows_names)},
          "one_by_one, around the model": around_the_model(one_by_one)}


def check_moving(name: str, change: Neighbour, limit: float, **run) -> None:
    build, _, layers = BUILDS[name]
    ran, model = sampled(name, **run), change(build())
    cost, result = flops(lambda: ran.model_patch(model, SCALE, layers))
    assert cost / flops(lambda: ran.ksampler(model))[0] <= undisturbed(name) + limit
    assert relative_error(result, ran.model_patch(model, SCALE, layers, WHOLE)) < 1e-4


@pytest.mark.in_turn("name")
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("change", MOVING.values(), ids=MOVING)
def test_beside_a_wrapper_that_lays_the_batch_out_anew(name, change):
    """Nothing says which row a sample is of; what enters with it does."""
    check_moving(name, change, 0.03)


def test_a_wrapper_that_moves_rows_without_a_trace_is_found_in_the_first_step():
    check_moving("sd15", wrapped(backwards), 0.08, steps=5)


def test_samples_of_one_latent_under_two_texts_are_told_apart():
    """The negative is twice as long, so the host repeats the positive in its own call, and not in the weak rows'."""
    check_moving("sd15", wrapped(tile_major), 0.03, positive=models.conditioning(1, tokens=77),
                 negative=models.conditioning(2, tokens=154))


def tiles_in_two_calls(function, inputs: dict) -> torch.Tensor:
    return torch.cat([tile_major(function, {**inputs, "input": half}) for half in inputs["input"].chunk(2, dim=-1)], -1)


def another_forward(model):
    """Of a module inside a block."""
    norm = model.model.diffusion_model.input_blocks[1][1].norm
    model.add_object_patch("diffusion_model.input_blocks.1.1.norm.forward", lambda x: 0.9 * type(norm).forward(norm, x))
    return model


def rebound(model):
    """A forward that gives its module a method, in each call."""
    norm = model.model.diffusion_model.input_blocks[1][1].norm

    def damped(self, x):
        return 0.9 * type(self).forward(self, x)

    def forward(x):
        norm.damped = MethodType(damped, norm)
        return norm.damped(x)

    model.add_object_patch("diffusion_model.input_blocks.1.1.norm.forward", forward)
    return model


def hook(model):
    """On a module inside a block."""
    return with_hooks(model, {"input_blocks.1.1.transformer_blocks.0.attn2": lambda out: 0.9 * out})


ON_MOVED_ROWS = {"an override": override, "an override that counts": counting_override,
                 "an attention patch": attention_patch, "a forward": another_forward, "a hook": hook,
                 "HyperTile": MODELS["HyperTile on another layer"]}


@pytest.mark.parametrize(("layout", "change"), [
    *((tile_major, change) for change in ON_MOVED_ROWS),
    *((layout, "an override") for layout in (tiles_in_two_calls, mirrored_copy, backwards))],
    ids=lambda value: getattr(value, "__name__", value))
def test_patches_are_tried_for_the_conditional_samples_where_rows_are_moved(layout, change):
    """Which these are shows in the first step, where nothing is shared; of a layout without a trace in the second."""
    steps, learning = 6, 2 if layout is backwards else 1
    run, model = sampled("sd15", steps=steps), ON_MOVED_ROWS[change](wrapped(layout)(models.sd15()))
    cost, result = flops(lambda: run.model_patch(model, SCALE, "m0"))
    saved = 1.5 - cost / flops(lambda: run.ksampler(model))[0]
    assert saved >= (1.5 - undisturbed("sd15") - 0.03) * (steps - learning) / steps
    assert relative_error(result, run.model_patch(model, SCALE, "m0", WHOLE)) < 1e-4


def test_a_method_that_is_bound_anew_is_no_change():
    steps = 6
    run, model = sampled("sd15", steps=steps), rebound(models.sd15().clone())
    cost, result = flops(lambda: run.model_patch(model, SCALE, "m0"))
    saved = 1.5 - cost / flops(lambda: run.ksampler(model))[0]
    assert saved >= (1.5 - undisturbed("sd15") - 0.03) * (steps - 1) / steps
    assert relative_error(result, run.model_patch(model, SCALE, "m0", WHOLE)) < 1e-4


@pytest.mark.parametrize("rule", [from_a_pair, of_index_0, of_the_last_row], ids=lambda function: function.__name__)
def test_patches_that_count_on_the_place_of_a_row_are_not_trusted_where_rows_are_moved(rule):
    """They give a tile another image prompt by where it stands among all."""
    run, model = sampled("sd15", steps=4), cross_attention(rule)(wrapped(tile_major)(models.sd15()))
    assert relative_error(run.model_patch(model, SCALE), run.model_patch(model, SCALE, options=WHOLE)) < 1e-4


@pytest.mark.parametrize("place", ["middle", "output", "input"])
def test_beside_a_control_net(place):
    channels, shrink = {"middle": (64, 4), "output": (32, 1), "input": (32, 1)}[place]
    run = controlled(place, channels, shrink, both=True)
    cost, result = flops(lambda: run.model_patch(models.sd15(), SCALE, "m0"))
    assert cost / flops(lambda: run.ksampler(models.sd15()))[0] <= undisturbed("sd15") + 0.03
    assert relative_error(result, run.model_patch(models.sd15(), SCALE, "m0", WHOLE)) < 1e-4


@pytest.mark.in_turn("fitting")
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("fitting", [1, 2], ids=["row by row", "two of three rows"])
def test_with_little_memory(name, fitting, monkeypatch):
    build, _, layers = BUILDS[name]
    run = sampled(name)
    plain = run.model_patch(build(), SCALE, layers)
    limit = undisturbed(name) + 0.05
    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required",
                        lambda self, shape, cond_shapes=None: 0 if shape[0] <= fitting else 1e18)
    cost, result = flops(lambda: run.model_patch(build(), SCALE, layers))
    assert cost / flops(lambda: run.ksampler(build()))[0] <= limit
    assert relative_error(result, plain) < 1e-4


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_is_kept_of_a_u_net_has_to_fit_the_free_memory(is_shared, monkeypatch, caplog):
    monkeypatch.setattr("pag_pack.nodes.host.hooks.kept.PrefixStore.has_room", lambda *_: is_shared)
    run, model = sampled("sd15"), override(models.sd15().clone())
    with caplog.at_level("INFO"):
        result = run.model_patch(model, SCALE)
    assert ("not enough free memory to keep" in caplog.text) is not is_shared
    assert relative_error(result, run.model_patch(models.sd15(), SCALE)) < 1e-4


def test_what_is_kept_of_a_transformer_goes_to_the_cpu(monkeypatch):
    """One output, which travels faster than it is computed again."""
    monkeypatch.setattr("pag_pack.nodes.host.hooks.kept.PrefixStore.has_room", lambda *_: False)
    run, model = sampled("flux"), override(models.flux().clone())
    cost, result = flops(lambda: run.model_patch(model, SCALE, "auto"))
    assert cost / flops(lambda: run.ksampler(model))[0] <= undisturbed("flux") + 0.03
    assert relative_error(result, run.model_patch(models.flux(), SCALE, "auto")) < 1e-4


@pytest.mark.parametrize(("beside", "has_room", "limit"), [
    (lambda model: model, True, 1.3), (overridden, True, 1.3), (overridden, False, 2.0)],
    ids=["in one call", "in a call of its own", "without room"])
def test_wan_vace_runs_its_controls_for_the_plain_rows_alone(beside, has_room, limit, monkeypatch):
    """They see nothing of the blocks, so a perturbed row has the same. Here they are four of six blocks."""
    monkeypatch.setattr("pag_pack.nodes.host.hooks.kept.PrefixStore.has_room", lambda *_: has_room)
    how = next(how for how in SAMPLED if how.name == "Wan VACE, two controls")
    run, model = of_family(how, 1.0, 2), beside(how.build())
    cost, result = flops(lambda: run.model_patch(model, SCALE, "1"))
    plain_cost, plain = flops(lambda: run.ksampler(model))
    assert cost / plain_cost <= limit
    assert relative_error(result, run.model_patch(model, SCALE, "1", WHOLE)) < 1e-4
    assert relative_error(result, plain) > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_a_step_that_easy_cache_skips_is_skipped_for_the_perturbed_rows_too(cfg, composed):
    """The reference perturbs in a call within the host's step: behind the wrapper that begins one."""
    run = sampled("sd15", cfg=cfg, steps=12)
    cached = EasyCacheNode.execute(models.sd15(), 0.2, 0.0, 1.0, False).result[0]
    ours = uuid.uuid4()

    def post_cfg(args: dict) -> torch.Tensor:
        options = set_model_options_patch_replace(args["model_options"].copy(), identity, "attn1", "middle", 0)
        (weak,) = comfy.samplers._calc_cond_batch(args["model"], [[dict(cond, uuid=ours) for cond in args["cond"]]],
                                                  args["input"], args["sigma"], options)
        return args["denoised"] + SCALE * (args["cond_denoised"] - weak)

    reference = cached.clone()
    reference.set_model_sampler_post_cfg_function(post_cfg)
    (full, expected), (cost, result) = flops(lambda: run.ksampler(reference)), flops(
        lambda: run.ksampler(patched(cached, SCALE)))
    composed.check("EasyCache", "a perturbed call within the host's step", result, expected)
    whole, uncached = flops(lambda: run.ksampler(patched(models.sd15(), SCALE)))
    assert cost < 0.7 * whole, "the cache must have been used"
    assert cost < 0.93 * full
    of_cache = relative_error(run.ksampler(cached), run.ksampler(models.sd15()))
    assert relative_error(result, uncached) < 2 * of_cache


class _Hint:
    """As ControlNet-LLLite: what a layer adds is made of a picture when it is needed first, and kept."""

    def __init__(self) -> None:
        self.added = None

    def __call__(self, q, k, v, extra_options):
        if extra_options["block"] == ("input", 1):
            if self.added is None:
                self.added = torch.linspace(-1.0, 1.0, q.shape[-1])[None, None] ** 2
            q = q + self.added
        return q, k, v


def test_what_a_patch_makes_once_for_all_rows_is_shared_from_the_second_step_on():
    def beside():
        model = models.sd15().clone()
        model.set_model_attn1_patch(_Hint())
        return model

    run, steps = sampled("sd15", steps=6), 6
    cost, result = flops(lambda: run.model_patch(beside(), SCALE, "m0"))
    saved = 1.5 - cost / flops(lambda: run.ksampler(beside()))[0]
    assert saved >= (1.5 - undisturbed("sd15") - 0.03) * (steps - 1) / steps
    assert relative_error(result, run.model_patch(beside(), SCALE, "m0", WHOLE)) < 1e-4
