"""Random prompts and requests: the shipped examples with random settings, some made invalid in one place."""

from __future__ import annotations

import copy
import json
import math
import random
from contextlib import suppress
from dataclasses import dataclass

from harness import workflow
from harness.errors import HarnessError
from harness.host import ROOT
from harness.workflow import Prompt, inputs_of

FLAWED = 0.25  # share of the prompts, and of the questions
PACK = "custom_nodes.perturbed-attention-guidance"
LAYERS = ("auto", "all", "u1-3", "m0", "d0", "u0", "all,!u1", "m0:h0", " u1-3 ,!u2", "mid", "output.1-3")
GARBAGE = ("", ",", "u99", "no such layer", "u3-1", "m0:h99", "!all", "-1", "u0.99", "å" * 50, "u" * 100_000,
           "\0", "d0-999999999999", "__import__('os')", "m0;d0", "{}", "%s%n")
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "ddim", "lms", "uni_pc", "res_multistep")
SCHEDULERS = ("normal", "karras", "simple", "sgm_uniform", "exponential")
PERTURBATIONS = ("identity", "seg", "tpg", "uniform", "random_mask")
BETWEEN = ("PAGModelPatch", "PerturbedAttentionGuidance", "RescaleCFG", "FreeU_V2")  # between a model and its sampler
FIXED = {"ckpt_name", "head_channels", "qkv_order", "noise_schedule", "preview"}  # other values: another model's
# What keeps a run short, and values that only together make sense.
OURS = {
    "seed": lambda rng: rng.getrandbits(64),
    "steps": lambda rng: rng.randint(2, 5),
    "cfg": lambda rng: rng.choice([1.0, rng.uniform(0.0, 12.0)]),
    "denoise": lambda rng: rng.choice([1.0, rng.uniform(0.3, 1.0)]),
    "label": lambda rng: rng.randint(-1, 3),
    "layers": lambda rng: rng.choice(LAYERS),
    "layer_selections": lambda rng: "\n".join(rng.sample(LAYERS, rng.randint(1, 2))),
    "perturbations": lambda rng: "\n".join(rng.sample(PERTURBATIONS, rng.randint(0, 1))),
    "scales": lambda rng: ", ".join(f"{scale:g}" for scale in rng.sample((0, 0.5, 3, 30), rng.randint(1, 2))),
    "sampler_name": lambda rng: rng.choice(SAMPLERS),
    "scheduler": lambda rng: rng.choice(SCHEDULERS),
    "start_percent": lambda rng: rng.uniform(0.0, 0.45),
    "end_percent": lambda rng: rng.uniform(0.55, 1.0),
    "cfg_start_percent": lambda rng: rng.uniform(0.0, 0.45),
    "cfg_end_percent": lambda rng: rng.uniform(0.55, 1.0),
    "start_sigma": lambda rng: rng.choice([10000.0, rng.uniform(20.0, 50.0)]),
    "end_sigma": lambda rng: rng.choice([0.0, rng.uniform(0.0, 0.1)]),
    "adaptive_scale": lambda rng: rng.uniform(0.001, 0.5),
    "random_share": lambda rng: rng.choice([0.0, rng.uniform(0.1, 0.6)]),
    "task": lambda rng: rng.choice(("box_inpainting", "super_resolution", "gaussian_blur", "motion_blur")),  # no mask
    **dict.fromkeys(("box_left", "box_top"), lambda rng: rng.uniform(0.0, 0.4)),  # which leaves room for the box
    **dict.fromkeys(("box_width", "box_height"), lambda rng: rng.uniform(0.3, 0.6)),
    "factor": lambda rng: rng.choice([2, 4]),  # which divides every size that is drawn
    "min_step_percent": lambda rng: rng.uniform(0.01, 0.4),
    "max_step_percent": lambda rng: rng.uniform(0.6, 0.99),
    "learning_rate": lambda rng: rng.uniform(0.01, 0.2),
    "kernel_size": lambda rng: rng.choice([3, 5, 9]),
    "shown_steps": lambda rng: rng.randint(1, 8),
    "cell_size": lambda rng: rng.randint(64, 160),
}


@dataclass(frozen=True)
class Attempt:
    prompt: Prompt
    flaw: str | None  # what is wrong with it


class PromptMaker:
    """Draws prompts; the same seed and server give the same ones."""

    def __init__(self, object_info: dict[str, dict], rng: random.Random) -> None:
        self.info, self.rng = object_info, rng
        examples = []
        for path in sorted((ROOT / "workflows").glob("*.json")):
            with suppress(HarnessError):  # an older ComfyUI lacks some of their nodes or inputs
                examples.append(workflow.load(path, object_info))
        self.examples = [prompt for prompt in examples if not workflow.missing_files(prompt, object_info)]
        self.ours = {name for name, node in object_info.items() if node["python_module"] == PACK}

    def make(self) -> Attempt:
        prompt = copy.deepcopy(self.rng.choice(self.examples))
        for name in BETWEEN:
            if self.rng.random() < 0.15:
                self.put_between(prompt, name)
        if self.rng.random() < 0.5:
            self.add_options(prompt)
        if self.rng.random() < 0.2:
            (loader,) = [key for key, node in prompt.items() if node["class_type"] == "PAGADMLoader"]
            prompt["list"] = {"class_type": "PAGLayers", "inputs": {"model": [loader, 0], "layers": "auto"}}
        for node in prompt.values():
            self.draw_settings(node)
            if node["inputs"].get("schedule", "").startswith("adaptive"):  # which need more than the neutral 0
                node["inputs"]["adaptive_scale"] = OURS["adaptive_scale"](self.rng)
        if any(node["inputs"].get("random_share") for node in prompt.values()):
            self.give_several_layers(prompt)
        if any(node["class_type"] == "PAGSDSOptimizer" for node in prompt.values()) and "options" in prompt:
            prompt["options"]["inputs"]["reuse_every"] = 1  # for every step has its own noise
        return Attempt(prompt, self.spoil(prompt) if self.rng.random() < FLAWED else None)

    def give_several_layers(self, prompt: Prompt) -> None:
        """For a share of one layer draws nothing, and a single head lies in one."""
        for node in prompt.values():
            given = node["inputs"]
            if given.get("random_share") and any(other["class_type"] == "PAGHeadSearch" for other in prompt.values()):
                given["random_share"] = 0.0
            for name in ("layers", "layer_selections"):
                if isinstance(given.get(name), str):
                    given[name] = "all"

    def put_between(self, prompt: Prompt, name: str) -> None:
        """The node, in front of whatever takes the loader's model to sample with it."""
        takers = [node for key, node in prompt.items() if isinstance(node["inputs"].get("model"), list)
                  and node["class_type"] != "PAGADMClassLabel" and not key.startswith("between")]
        if not takers:
            return
        prompt[f"between {name}"] = {"class_type": name, "inputs": {
            **self.defaults(name), "model": takers[0]["inputs"]["model"]}}
        for node in takers:
            node["inputs"]["model"] = [f"between {name}", 0]

    def add_options(self, prompt: Prompt) -> None:
        takers = [node for node in prompt.values() if node["class_type"] in self.ours
                  and "options" not in node["inputs"]
                  and any(name == "options" for name, *_ in inputs_of(self.info[node["class_type"]]))]
        if takers:
            prompt["options"] = {"class_type": "PAGOptions", "inputs": self.defaults("PAGOptions")}
            self.rng.choice(takers)["inputs"]["options"] = ["options", 0]

    def defaults(self, name: str) -> dict:
        return {given: options["default"] for given, _, options, _ in inputs_of(self.info[name])
                if "default" in options}

    def draw_settings(self, node: dict) -> None:
        """New values: in our nodes for half the settings, in the host's for what makes a run long or another."""
        ours, given = node["class_type"] in self.ours, node["inputs"]
        for name, kind, options, _ in inputs_of(self.info[node["class_type"]]):
            if name not in given or isinstance(given[name], list) or name in FIXED:
                continue
            if not ours:
                small = {"batch_size": self.rng.randint(1, 2), "width": self.rng.choice([16, 32]),
                         "height": self.rng.choice([16, 32])}
                given[name] = small.get(name, given[name]) if name not in ("steps", "seed", "noise_seed", "value") \
                    else self.rng.randint(2, 5)
            elif name in OURS and (name == "steps" or self.rng.random() < 0.5):
                given[name] = OURS[name](self.rng)
            elif name not in OURS and self.rng.random() < 0.3:
                given[name] = self.draw(kind, options, given[name])

    def draw(self, kind, options: dict, value):
        if kind == "COMBO" or isinstance(kind, list):
            return self.rng.choice(options.get("options") or kind)
        if kind == "BOOLEAN":
            return self.rng.random() < 0.5
        if kind == "INT":
            return self.rng.randint(options["min"], min(options["max"], options["min"] + 10))
        if kind == "FLOAT":
            return self.rng.uniform(options["min"], min(options["max"], 10.0))
        return value

    def spoil(self, prompt: Prompt) -> str | None:
        """Makes one setting of ours wrong, and says which. None where there is nothing to spoil."""
        places = [(key, name, kind, options) for key, node in prompt.items() if node["class_type"] in self.ours
                  for name, kind, options, _ in inputs_of(self.info[node["class_type"]])
                  if name in node["inputs"] and kind != "BOOLEAN" and name not in ("options", "vae")]
        key, name, kind, options = self.rng.choice(places)
        value = self.bad_value(name, kind, options)
        prompt[key]["inputs"][name] = value
        return f"{prompt[key]['class_type']}.{name} = {json.dumps(value)[:60]}"

    def bad_value(self, name: str, kind, options: dict):
        if kind in ("INT", "FLOAT"):
            return self.rng.choice([options["min"] - 1, options["max"] * 2 + 1, "many", None, math.nan, math.inf,
                                    10**400, {}])
        if kind == "STRING" and name != "perturbations":  # where nothing at all is neutral
            return self.rng.choice(GARBAGE)
        return self.rng.choice(["no such thing", None, {}, 7])


@dataclass(frozen=True)
class Question:
    path: str
    body: bytes | None  # None: GET
    valid: bool


def question(rng: random.Random) -> Question:
    """What the editor may ask of the /pag routes, or what nobody should."""
    if rng.random() < 0.1:
        return Question("/pag/families", None, True)
    shipped = {"node": "PAGADMLoader", "input": "ckpt_name", "file": "adm-emoji-64.safetensors"}
    model = rng.choice([{"family": rng.choice(["SD 1.5", "SDXL", "Flux"])}, {"loader": shipped}])
    path, body = rng.choice([
        ("/pag/model", model),
        ("/pag/select", {"model": model, "layers": rng.choice(["auto", "all", "0-1" if model == {"family": "Flux"}
                                                               else "m0"])}),
        ("/pag/plot", {"model": model, "layers": "auto", "steps": rng.randint(1, 200), "cfg": rng.uniform(0.0, 20.0),
                       "scale": rng.uniform(0.0, 10.0), "options": {"end_percent": rng.uniform(0.1, 1.0)}}),
    ])
    if rng.random() >= FLAWED:
        return Question(path, json.dumps(body).encode(), True)
    body = rng.choice([b"", b"{", rng.randbytes(rng.randint(1, 2000)), b"[" * rng.randint(1, 60_000), b"1" * 70_000,
                       *(json.dumps(wrong).encode() for wrong in (
                           [], {}, 7, None, {"family": rng.choice(GARBAGE)}, {"model": model, "layers": 7},
                           {"model": model, "layers": "u99"}, {"model": model, "options": {"strength": "high"}},
                           {"loader": {"node": "UNETLoader", "input": "unet_name", "file": "../../etc/passwd"}}))])
    return Question(path, body, False)
