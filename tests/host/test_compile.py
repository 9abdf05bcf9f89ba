"""PAG under torch.compile as the host's TorchCompileModel sets it up: without guards on transformer_options.

Without those guards a graph serves other rows and other layers of the same shapes too, so ours may have no part in one.
The backend is "eager": tracing and guards are the same, and no C++ compiler is needed.
"""

import shutil

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .composed import PLAIN
from .imitations import overridden
from .runs import Run, patched, relative_error

SCALE = 3.0


def compiled(model, backend="eager", keys=("diffusion_model",)):
    torch._dynamo.reset()
    model = model.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict},
                              keys=list(keys))
    return model


@pytest.mark.parametrize(("build", "cfg_end"),
                         [pytest.param(models.sd15, 0.5, marks=pytest.mark.slow), (models.flux, 1.0)])
def test_compiled_equals_plain(build, cfg_end, composed):
    """On SD 1.5 two rows are first cond and uncond, then cond and perturbed: the same shapes with another meaning."""
    channels = 16 if build is models.flux else 4
    run = Run(steps=4, cfg_window=(0.0, cfg_end), latent={"samples": torch.zeros(1, channels, 8, 12)})
    options = PAGOptions(start_percent=cfg_end % 1.0)
    plain = run.pag_ksampler(build(), SCALE, "auto", options)
    composed.check("torch.compile", PLAIN, run.pag_ksampler(compiled(build()), SCALE, "auto", options), plain)
    assert relative_error(plain, run.pag_ksampler(build(), 0.0, "auto")) > 1e-4


@pytest.mark.slow
def test_one_compiled_model_serves_every_setting():
    model = compiled(models.sd15())
    run = Run(steps=2)
    for layers in ("m0", "u0", "m0:h1"):
        assert relative_error(run.ksampler(patched(model, SCALE, layers)),
                              run.ksampler(patched(models.sd15(), SCALE, layers))) < 1e-5
    assert relative_error(run.ksampler(model), run.ksampler(models.sd15())) < 1e-5


@pytest.mark.parametrize("keys", [pytest.param("whole", marks=pytest.mark.slow), "singly"])
@pytest.mark.parametrize("layers", ["double.1", "single.1"])
def test_the_prefix_is_shared_and_no_altered_unit_is_in_a_graph(keys, layers):
    """Blocks compiled singly, as KJNodes does it, or the whole network, which then runs as compiled blocks."""
    run = Run(steps=2, latent={"samples": torch.zeros(1, 16, 8, 12)}, negative=models.conditioning(2, tokens=14))
    plain = run.model_patch(models.flux(), SCALE, layers)
    network = models.flux().model.diffusion_model
    units = [f"{group}.{i}" for group in ("double_blocks", "single_blocks")
             for i in range(len(getattr(network, group)))]
    model = compiled(models.flux(), keys=["diffusion_model"] if keys == "whole" else
                     [f"diffusion_model.{unit}" for unit in units])
    seen = {unit: [] for unit in units}  # (rows, whether in a graph) of each computation of a block
    handles = [network.get_submodule(unit).img_mod.lin.register_forward_hook(_note(seen[unit]))
               if unit.startswith("double") else
               network.get_submodule(unit).linear1.register_forward_hook(_note(seen[unit])) for unit in units]
    try:
        result = run.model_patch(model, SCALE, layers)
    finally:
        for handle in handles:
            handle.remove()
    assert relative_error(result, plain) < 1e-5
    first = units.index(layers.replace(".", "_blocks."))
    for index, unit in enumerate(units):
        # A graph calls the hook while it is traced, not when it runs: once for the plain rows, once for the weak one.
        graphs = {rows for rows, is_traced in seen[unit] if is_traced}
        eager = {rows for rows, is_traced in seen[unit] if not is_traced}
        assert graphs == ({2} if index <= first else {1, 2}), unit
        assert eager == ({1} if index == first else set()), unit


@pytest.mark.slow
def test_no_step_compiles_again_beside_an_override():
    """In every step it is tried by objects of their own; these have no part in a graph."""
    graphs, model = [], compiled(overridden(models.flux()))

    def count(executor, *args):
        try:
            return executor(*args)
        finally:
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "count", count)
    run = Run(steps=4, latent={"samples": torch.zeros(1, 16, 8, 12)})
    result = run.model_patch(model, SCALE, "single.1")
    assert len(graphs) == 4
    assert graphs[0] == graphs[-1]
    assert relative_error(result, run.model_patch(overridden(models.flux()), SCALE, "single.1")) < 1e-5


def _note(seen: list):
    def hook(module, args, output) -> None:
        seen.append((len(args[0]), torch.compiler.is_compiling()))
    hook.__module__ = torch.__name__  # another node's would be tried, and that happens outside graphs
    return hook


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_with_inductor():
    run = Run(steps=1, latent={"samples": torch.zeros(1, 16, 8, 8)}, negative=models.conditioning(2, tokens=14))
    model = compiled(models.flux(), backend="inductor")
    assert relative_error(run.model_patch(model, SCALE, "single.1"),
                          run.model_patch(models.flux(), SCALE, "single.1")) < 1e-4


OBJECTS = {"whole": ["diffusion_model"],
           "singly": [f"diffusion_model.{group}.{i}" for group in ("double_blocks", "single_blocks") for i in range(2)]}


QUICK = {("whole", 5.0, "identity, negative"), ("singly", 1.0, "identity, extra")}


@pytest.mark.parametrize(("keys", "cfg", "how"), [
    pytest.param(keys, cfg, how, marks=[] if (keys, cfg, how) in QUICK else pytest.mark.slow)
    for keys in OBJECTS for cfg, how in ((1.0, "identity, extra"), (5.0, "identity, extra"), (5.0, "skip_block, extra"),
                                         (5.0, "identity, negative"))])
def test_compiled_in_the_place_of_the_modules(keys, cfg, how):
    """As WaveSpeed's and older packs' nodes do it: object patches, of which nothing says how they were compiled."""
    torch._dynamo.reset()
    kind, row = how.split(", ")
    options, model = PAGOptions(kind, row=row), models.flux().clone()
    for key in OBJECTS[keys]:
        model.add_object_patch(key, torch.compile(model.get_model_object(key), backend="eager",
                                                  options={"guard_filter_fn": skip_torch_compile_dict}))
    run = Run(steps=2, cfg=cfg, latent={"samples": torch.zeros(1, 16, 8, 8)})
    plain = run.model_patch(models.flux(), SCALE, "double.1", options)
    assert relative_error(run.model_patch(model, SCALE, "double.1", options), plain) < 1e-5
    assert relative_error(run.ksampler(models.flux()), plain) > 1e-3
