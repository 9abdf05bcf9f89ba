"""The shared prefix keeps its promise in FLOPs, which are exact, at the full size of well-known models."""

import pytest
from benchmark import networks
from benchmark.bench import count


@pytest.mark.parametrize(("shape", "guided", "alone"), [
    # The ratio to a CFG step, and without CFG to one forward. A transformer perturbed at layer d of N: 1 + (N - d)/2N.
    (networks.FULL[0], 1.35, 1.72),
    (networks.FULL[1], 1.35, 1.72),
    (networks.FULL[2], 1.02 * (1 + (24 - 13) / 48), 1.02 * (1 + (24 - 13) / 24)),
    (networks.FULL[3], 1.02 * (1 + (57 - 28) / 114), 1.02 * (1 + (57 - 28) / 57)),
], ids=lambda value: getattr(value, "name", None))
def test_a_guided_step_costs_no_more_than_its_floor(shape, guided, alone):
    flops = count(shape)["flops"]
    assert flops["CFG + PAG, shared prefix"] / flops["CFG"] <= guided
    assert flops["PAG without CFG"] / flops["no guidance"] <= alone
    assert flops["CFG + PAG, shared prefix"] < flops["CFG + PAG, full batch"] <= 1.5 * flops["CFG"]
