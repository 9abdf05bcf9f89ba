"""PAG under torch.compile as the host's TorchCompileModel sets it up: without guards on transformer_options.

Without those guards a graph serves other rows and other layers of the same shapes too, so ours may have no part in one.
The backend is "eager": tracing and guards are the same, and no C++ compiler is needed.
"""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .composed import PLAIN
from .runs import Run, patched, relative_error

SCALE = 3.0


def compiled(model):
    torch._dynamo.reset()
    model = model.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return model


@pytest.mark.parametrize(("build", "cfg_end"), [(models.sd15, 0.5), (models.flux, 1.0)])
def test_compiled_equals_plain(build, cfg_end, composed):
    """On SD 1.5 two rows are first cond and uncond, then cond and perturbed: the same shapes with another meaning."""
    channels = 16 if build is models.flux else 4
    run = Run(steps=4, cfg_window=(0.0, cfg_end), latent={"samples": torch.zeros(1, channels, 8, 12)})
    options = PAGOptions(start_percent=cfg_end % 1.0)
    plain = run.pag_ksampler(build(), SCALE, "auto", options)
    composed.check("torch.compile", PLAIN, run.pag_ksampler(compiled(build()), SCALE, "auto", options), plain)
    assert relative_error(plain, run.pag_ksampler(build(), 0.0, "auto")) > 1e-4


def test_one_compiled_model_serves_every_setting():
    model = compiled(models.sd15())
    run = Run(steps=2)
    for layers in ("m0", "u0", "m0:h1"):
        assert relative_error(run.ksampler(patched(model, SCALE, layers)),
                              run.ksampler(patched(models.sd15(), SCALE, layers))) < 1e-5
    assert relative_error(run.ksampler(model), run.ksampler(models.sd15())) < 1e-5


def test_the_plain_rows_stay_compiled(caplog):
    model, rows = compiled(models.sd15()), []
    network = model.get_model_object("diffusion_model")
    handle = network.register_forward_pre_hook(
        lambda _, args: rows.append((len(args[0]), torch.compiler.is_compiling())))
    try:
        with caplog.at_level("INFO"):
            Run(steps=1).model_patch(model, SCALE)
    finally:
        handle.remove()
    assert "the model is compiled" in caplog.text
    assert rows == [(2, True), (1, False)]
