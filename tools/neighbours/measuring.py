"""Compares PAG together with another pack against PAG in a separate full call. Needs ComfyUI in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import prepare_model_patcher
from pag_pack.nodes.guidance import PAGGuider, PAGModelPatch
from pag_pack.nodes.sampling import PAGKSampler
from pag_pack.pag_core.settings import PAGOptions
from torch.utils.flop_counter import FlopCounterMode

import nodes

from .models import FAMILIES, Family, fresh, perturbed, prompt
from .setting_up import SEED, sampled

SCALE = 2.0
LIMIT = 1e-4
SEEN = 1e-3  # an effect below that is none
CASES = ((1.0, 1, 1), (5.0, 2, 1), (1.0, 2, 2), (5.0, 1, 2))  # (cfg, batch, PAGs in a row): every two values meet


@dataclass
class Scene:
    """What is sampled, and how. A set-up of another pack changes it in place."""

    model: ModelPatcher
    latent: dict
    cfg: float
    steps: int = 2
    sampler: str = "euler"
    scheduler: str = "normal"
    positive: list = field(default_factory=lambda: prompt(1))
    negative: list = field(default_factory=lambda: prompt(2))
    run: Callable[[Scene], torch.Tensor] | None = None  # in place of the host's KSampler
    is_twin: bool = False  # whether the model is a copy for calls of the reference
    remembers: bool = False  # whether the pack keeps results from call to call, so that the reference needs a copy

    def sample(self) -> torch.Tensor:
        if self.run:
            return self.run(self)
        return nodes.common_ksampler(self.model, SEED, self.steps, self.cfg, self.sampler, self.scheduler,
                                     self.positive, self.negative, self.latent)[0]["samples"]


SetUp = Callable[[Scene], None]


@dataclass
class Found:
    """What a set-up came to.

    Attributes:
        error: max|a − b| / max|b| to PAG in a call of its own, the largest of all cases.
        effect: the same from no PAG to PAG, the smallest of all cases.
        flops: of CFG + PAG over CFG.
        passes: what PAG adds, in passes of the conditional rows alone (the same run at cfg 1).
        is_twin: whether the call of its own had a second copy of the model with the other pack on it, because the pack
            keeps results from call to call and cannot have both on one copy.
        problems: what went wrong, by case.
        said: what the pack said in the log.
    """

    error: float | None = None
    effect: float | None = None
    flops: float | None = None
    passes: float | None = None
    is_twin: bool = False
    problems: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def verdict(self) -> str:
        if self.problems:
            return "; ".join(f"{case}: {text}" for case, text in self.problems.items())
        if self.error is None:
            return "nothing to compare"
        if self.error > LIMIT:
            return "**differs**"
        return "matches" if self.effect > SEEN else "matches; PAG has no effect in at least one case"

    def row(self) -> dict:
        return {**asdict(self), "verdict": self.verdict()}


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("PAG"):
            self.lines.append(record.getMessage())


def measure(name: str, set_up: SetUp, through: str = "patch") -> Found:
    """All cases of one set-up on one family.

    Args:
        through: by its name in THROUGH, the node that the last layer's PAG is from.
    """
    family, found, said, start = FAMILIES[name], Found(), _Said(), time.perf_counter()
    logger = logging.getLogger("pag_pack")
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    for cfg, batch, chain in CASES:
        case = f"cfg {cfg:g}, batch {batch}" + (", two PAGs" if chain == 2 else "")
        _one_case(found, case, family, set_up, cfg, batch, chain, through)
    if through == "patch":
        with suppress(TypeError, NotImplementedError):  # counting does not know GGUF's tensors, nor derivatives
            _cost(found, family, set_up)
    logger.removeHandler(said)
    found.said = sorted(set(said.lines))
    found.seconds = time.perf_counter() - start
    return found


def _one_case(found: Found, case: str, family: Family, set_up: SetUp, cfg: float, batch: int, chain: int,
              through: str) -> None:
    try:
        plain = scene_of(family, set_up, cfg, batch).sample()
    except Exception as error:
        found.problems.setdefault("fails without PAG", _words(error))
        return
    expected, problem = _reference(family, set_up, cfg, batch, chain, is_twin=False)
    # A second copy holds what a pack remembers only where all of the pack is on the model.
    scene = scene_of(family, set_up, cfg, batch)
    wraps = "model_function_wrapper" in scene.model.model_options
    if scene.remembers or (wraps and (found.is_twin or problem or relative_error(expected, plain) < SEEN)):
        again, twin_problem = _reference(family, set_up, cfg, batch, chain, is_twin=True)
        if not twin_problem:
            found.is_twin |= bool(problem) or relative_error(again, expected) > LIMIT
            expected, problem = again, ""
    if problem:
        found.problems.setdefault("the reference fails", problem)
    try:
        scene = scene_of(family, set_up, cfg, batch)
        scene.model = guided(scene.model, family.layers[:chain - 1])
        result = THROUGH[through](scene, family.layers[chain - 1])
    except Exception as error:
        found.problems[case] = _words(error)
        return
    if not result.isfinite().all():
        found.problems[case] = "NaN"
    if expected is not None:
        found.error = max(found.error or 0.0, relative_error(result, expected))
    effect = relative_error(result if expected is None else expected, plain)
    found.effect = effect if found.effect is None else min(found.effect, effect)


def _reference(family: Family, set_up: SetUp, cfg: float, batch: int, chain: int, *,
               is_twin: bool) -> tuple[torch.Tensor | None, str]:
    """The picture with PAG in a call of its own, or what went wrong."""
    try:
        scene = scene_of(family, set_up, cfg, batch)
        scene.model = separate(family, scene.model, chain, [
            scene_of(family, set_up, cfg, batch, is_twin=True).model for _ in range(chain)] if is_twin else None)
        return scene.sample(), ""
    except Exception as error:
        return None, _words(error)


def _cost(found: Found, family: Family, set_up: SetUp) -> None:
    if any(case.startswith(("cfg", "fails")) for case in found.problems):
        return
    with torch.inference_mode(False), torch.no_grad():
        plain, beside, alone = (counted_flops(family, set_up, chain, cfg=cfg)
                                for chain, cfg in ((0, 5.0), (1, 5.0), (0, 1.0)))
    found.flops, found.passes = beside / plain, (beside - plain) / alone


def counted_flops(family: Family, set_up: SetUp, chain: int, layer: str | None = None, cfg: float = 5.0,
                  options: PAGOptions | None = None) -> int:
    """FLOPs of a run with CFG and so many PAGs; the first of them in `layer`, where that is another one."""
    scene = scene_of(family, set_up, cfg, 1)
    layers = (layer or family.layers[0], *family.layers[1:])
    scene.model = guided(scene.model, layers[:chain], options)
    with FlopCounterMode(display=False) as counter:
        scene.sample()
    return counter.get_total_flops()


def scene_of(family: Family, set_up: SetUp, cfg: float, batch: int, *, is_twin: bool = False) -> Scene:
    """What is sampled beside the pack, made anew."""
    torch.manual_seed(0)
    scene = Scene(fresh(family), {"samples": torch.zeros(batch, *family.latent)}, cfg,
                  scheduler="simple" if family.flow else "normal", positive=prompt(1, **family.extras),
                  negative=prompt(2, **family.extras), is_twin=is_twin)
    set_up(scene)
    return scene


def samples_with_ksampler(name: str, set_up: SetUp) -> bool:
    """Whether a set-up on one family needs no other sampler or guider."""
    return scene_of(FAMILIES[name], set_up, 1.0, 1).run is None


def guided(model: ModelPatcher, layers: Sequence[str], options: PAGOptions | None = None) -> ModelPatcher:
    """PAG Model Patch for each of the layers."""
    for layer in layers:
        model = PAGModelPatch.execute(model, SCALE, layer, options).result[0]
    return model


def _patch(scene: Scene, layer: str) -> torch.Tensor:
    scene.model = guided(scene.model, (layer,))
    return scene.sample()


def _ksampler(scene: Scene, layer: str) -> torch.Tensor:
    return PAGKSampler.execute(scene.model, SEED, scene.steps, scene.cfg, SCALE, layer, scene.sampler, scene.scheduler,
                               scene.positive, scene.negative, scene.latent).result[0]["samples"]


def _guider(scene: Scene, layer: str) -> torch.Tensor:
    (made,) = PAGGuider.execute(scene.model, scene.positive, scene.negative, scene.cfg, SCALE, layer).result
    return sampled(scene, made)


THROUGH: dict[str, Callable[[Scene, str], torch.Tensor]] = {
    "patch": _patch, "ksampler": _ksampler, "guider": _guider}


def separate(family: Family, model: ModelPatcher, chain: int, twins: list[ModelPatcher] | None = None) -> ModelPatcher:
    """The model with PAG as the host's own node makes it, measured from the raw conditional prediction: a call of its
    own in each step, whose rows are the conditional ones by their index and their uuids.

    Args:
        twins: other copies of the model with the other pack on them, which those calls go to.
    """
    raw, sampled = {}, {}
    for twin in twins or ():
        twin.patch_model(load_weights=False)
        twin.pre_run()

    def pre_cfg(args: dict) -> list[torch.Tensor]:
        raw["cond"] = args["conds_out"][0].clone()  # others may change it in place
        return args["conds_out"]

    def post_cfg(args: dict) -> torch.Tensor:
        result = args["denoised"]
        for index in range(chain):
            options, called = args["model_options"].copy(), args["model"]
            options["transformer_options"] = options.get("transformer_options", {}).copy()
            if twins:
                called = twins[index].model
                options.update({key: value for key, value in twins[index].model_options.items()
                                if key == "model_function_wrapper"})
                # The copies share weights, and LoRA hooks change these.
                args["model"].current_patcher.unpatch_hooks()
                prepare_model_patcher(twins[index], {"positive": args["cond"]}, {"transformer_options": {}})
            x = sampled.get("x", args["input"])
            with perturbed(family, called, options, index, may_rest=bool(twins)):
                (weak,) = comfy.samplers.calc_cond_batch(called, [args["cond"]], x, args["sigma"], options)
            if twins:
                twins[index].clean_hooks()
            result = result + SCALE * (raw.get("cond", args["cond_denoised"]) - weak)
        return result

    functions = {"sampler_pre_cfg_function": pre_cfg, "sampler_post_cfg_function": post_cfg}

    def predict_noise(executor, x, timestep, model_options, seed=None):
        """For samplers that drop the functions on the way, and guiders that do not name their input. The options stay
        the same dict, for other nodes keep things in it."""
        sampled["x"] = x
        for key, function in functions.items():
            if function not in model_options.get(key, []):
                model_options[key] = [function, *model_options.get(key, [])]
        return executor(x, timestep, model_options, seed)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "reference", predict_noise)
    for key, function in functions.items():
        model.model_options[key] = [function, *model.model_options.get(key, [])]
    return model


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """max|a − b| / max|b|; NaN counts as infinite."""
    error = ((result - expected).abs().max() / expected.abs().max()).item()
    return error if error == error else float("inf")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
