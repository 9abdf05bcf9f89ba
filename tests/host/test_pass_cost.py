"""What the perturbed pass is said to cost, against the FLOPs of the real one at full size."""

from dataclasses import replace

import pytest
import torch
from benchmark import networks
from benchmark.bench import count
from pag_pack.nodes.host.layers import network_layers
from pag_pack.pag_core.selection import select

SD15, SDXL, SD3, FLUX, ADM = networks.FULL


@pytest.mark.parametrize(("shape", "layers", "error"), [
    (SD15, "m0", 1e-5), (SD15, "all", 1e-5), (SDXL, "u0.3,u4", 1e-5), (ADM, "auto", 1e-4), (ADM, "m0", 1e-4),
    # Transformers are not counted, only their blocks are.
    (SD3, "13", 1e-3), (FLUX, "double.4,single.3", 1e-3),
], ids=lambda value: getattr(value, "name", None))
def test_share_is_that_of_the_counted_flops(shape, layers, error):
    flops = count(replace(shape, layers=layers))["flops"]
    found = network_layers(shape.build("meta", torch.float32))
    share = found.share(select(layers, tuple(found.layers), found.auto))
    assert share == pytest.approx((flops["PAG without CFG"] - flops["no guidance"]) / flops["no guidance"], abs=error)
