"""Layer selections and settings of any kind: an error of ours or something valid, soon, never a crash.

A few hundred of each in an ordinary run; PAG_FUZZ=10000 makes it as many.
"""

import math
import os
import time
from dataclasses import fields

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pag_core.cost import plan_run
from pag_core.guidance import RESCALE_MODES
from pag_core.perturbation import KINDS
from pag_core.schedule import SCHEDULES
from pag_core.selection import Layer, SelectionError, select, text_of
from pag_core.settings import PREVIEWS, PAGOptions, PAGSettings, SettingError

COUNT = int(os.environ.get("PAG_FUZZ", "200"))
fuzzed = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
SECONDS = 2.0  # for one selection, on a busy machine; the longest take hundredths


def u_net() -> tuple[Layer, ...]:
    """Named as SDXL's: blocks of several transformer blocks."""
    blocks = [("d", "input", 4, 2), ("d", "input", 7, 10), ("m", "middle", 0, 10), ("u", "output", 0, 10),
              ("u", "output", 3, 2)]
    counts = {"d": 0, "m": 0, "u": 0}
    layers = []
    for group, kind, number, depth in blocks:
        block = f"{group}{counts[group]}"
        layers += [Layer(f"{block}.{i}", {group: counts[group], f"{block}.": i, f"{kind}.": number,
                                          f"{kind}.{number}.": i}, 20) for i in range(depth)]
        counts[group] += 1
    return tuple(layers)


def transformer() -> tuple[Layer, ...]:
    """Named as Flux's."""
    kinds = [("double", 19), ("single", 38)]
    names = [(kind, index) for kind, count in kinds for index in range(count)]
    return tuple(Layer(f"{kind}.{index}", {"": place, f"{kind}.": index}, 24)
                 for place, (kind, index) in enumerate(names))


MODELS = {"SDXL": (u_net(), "m0"), "Flux": (transformer(), "single.9")}
words = st.sampled_from(["auto", "all", "mid", "d", "m", "u", "d0", "m0", "u0", "u0.", "input.", "middle.0", "output.",
                         "double.", "single.", "blocks.", "input_blocks.14.1", "down_blocks.1", "h", ":h0", ":h0+2-3",
                         "!", ",", "-", "+", ".", " ", "\t", "\n", ":", "_"])
numbers = st.one_of(st.integers(0, 60), st.integers(-5, 10**9), st.just(10**40)).map(str) | st.just("0" * 4301)
texts = st.one_of(st.text(), st.lists(st.one_of(words, numbers), max_size=25).map("".join),
                  st.lists(words, max_size=6).map(lambda parts: "".join(parts) * 200))


@fuzzed
@given(st.sampled_from(sorted(MODELS)), texts)
def test_any_layers(model, text):
    layers, auto = MODELS[model]
    start = time.perf_counter()
    try:
        chosen = select(text, layers, auto)
    except SelectionError as error:
        assert len(str(error)) < 3 * len(text) + 1000
        return
    finally:
        assert time.perf_counter() - start < SECONDS
    assert chosen and set(chosen) <= set(layers)
    for layer, heads in chosen.items():
        assert heads is None or (heads and heads < set(range(layer.heads)))
    assert select(text_of(chosen, layers), layers, auto) == chosen


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.just(10**400),
                     st.just([]), st.just({}), st.binary(max_size=3))
shares = st.floats(0.0, 1.0)
FITTING = {
    "perturbation": st.sampled_from(sorted(KINDS)), "schedule": st.sampled_from(SCHEDULES),
    "rescale_mode": st.sampled_from(sorted(RESCALE_MODES)), "preview": st.sampled_from(PREVIEWS),
    "share_prefix": st.booleans(), "reuse_every": st.integers(1, 1000), "perturbation_seed": st.integers(0, 2**32),
    "start_sigma": st.floats(0.0, 10000.0), "end_sigma": st.floats(0.0, 10000.0),
    "perturbation_sigma": st.floats(0.0, 1000.0), "perturbation_temperature": st.floats(0.01, 100.0),
}
values = st.fixed_dictionaries({}, optional={
    field.name: st.one_of(FITTING.get(field.name, shares), FITTING.get(field.name, shares), anything)
    for field in fields(PAGOptions)})


@fuzzed
@given(values, st.one_of(st.floats(0.0, 100.0), anything), st.integers(1, 30))
def test_any_settings(given_options, scale, steps):
    try:
        wanted = PAGSettings(scale, "auto", PAGOptions(**given_options))
        sigmas = [14.6 * (1.0 - step / steps) for step in range(steps)]
        plan = plan_run(sigmas, wanted, lambda percent: 14.6 * (1.0 - percent), 5.0, 0.0, 1.0)
    except SettingError as error:
        assert 10 < len(str(error)) < 1000
        return
    assert len(plan) == steps
    for step in plan:
        assert math.isfinite(step.pag) and 0.0 <= step.pag <= wanted.scale
