"""The host checks the values of widgets alone; what comes over a link from another pack's node has any type and size.
Every such input gets what it cannot take, and the answer is a sentence that names it, before the model is called."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pag_pack.nodes.comparison import PAGGrid
from pag_pack.nodes.guidance import PAGAVGuider, PAGGuider, PAGModelPatch
from pag_pack.nodes.inspection import PAGInspect
from pag_pack.nodes.layers import PAGLayers
from pag_pack.nodes.options import PAGOptionsNode
from pag_pack.nodes.research.adm import PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.distillation import PAGSDSGradient, PAGSDSOptimizer
from pag_pack.nodes.research.heads import PAGHeadSearch
from pag_pack.nodes.sampling import PAGKSampler

from . import models
from .runs import Run, counted
from .test_sound import HOW

NODES = [PAGModelPatch, PAGGuider, PAGAVGuider, PAGKSampler, PAGLayers, PAGInspect, PAGGrid, PAGOptionsNode,
         PAGHeadSearch, PAGADMClassLabel, PAGSDSGradient, PAGSDSOptimizer]
BAD = [math.nan, math.inf, -0.5, 10**400, "one", "x" * 10_000, "漢字", None, [], {}, object(), 1j, b"1", float,
       np.array([1.0, 2.0]), np.float32("nan"), np.int64(-5), torch.zeros(2, 3), torch.zeros(0)]
# What widgets without a default are set to.
WIDGETS = {"layers": "m0", "layer_selections": "m0", "scheduler": "normal", "order": "annealed", "seed": 1, "steps": 1}


def widgets(node) -> list:
    """The inputs that are no sockets of their own."""
    return [one for one in node.define_schema().inputs if hasattr(one, "default")]


@pytest.mark.parametrize(("node", "name"), [(node, one.id) for node in NODES for one in widgets(node)],
                         ids=lambda value: getattr(value, "__name__", value))
def test_a_value_that_cannot_be_taken_is_named_before_sampling(node, name):
    schema, run = node.define_schema(), Run(latent=models.empty_latent(1, 8, 8))
    model, rows = counted(HOW.build() if node is PAGAVGuider else models.sd15())
    links = {"model": model, "positive": run.positive, "negative": run.negative, "latent_image": run.latent,
             "guider": PAGGuider.execute(models.sd15(), run.positive, run.negative, 2.0, 3.0, "m0").result[0],
             "vae": SimpleNamespace(latent_channels=4, decode=lambda samples: torch.zeros(samples.shape[0], 8, 8, 3))}
    if node is PAGADMClassLabel:
        links["model"] = PAGADMLoader.execute("adm-emoji-64.safetensors").result[0]
    if node is PAGAVGuider:
        links |= HOW.prompts()
    good = {one.id: WIDGETS.get(one.id, one.default) for one in widgets(node)}
    good |= {one.id: links[one.id] for one in schema.inputs if one.id in links}
    for value in BAD:
        if name == "prompt" and isinstance(value, str):
            continue
        given = good | {name: value}
        with pytest.raises(ValueError, match=f"^(class )?({name}|layers|PAG scale|perturbations)") as raised:
            node.execute(**{key: [one] for key, one in given.items()} if schema.is_input_list else given)
        assert len(str(raised.value)) < 9000
        assert not rows
