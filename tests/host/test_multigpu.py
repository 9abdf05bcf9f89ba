"""PAG where the host deals the rows of a step out over several devices.

There is one CPU here, so it stands under two names for two devices; scheduling, threads and copies of the model are the
host's own.
"""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from . import models
from .composed import PLAIN
from .runs import Run, patched, relative_error

SCALE = 3.0
DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]


@pytest.fixture(params=["one thread", "a thread each"])
def spread(request):
    """Makes a model run on two devices: what the host's MultiGPU node leads to when sampling starts."""
    from comfy.multigpu import MultiGPUThreadPool

    pool = MultiGPUThreadPool(DEVICES) if request.param == "a thread each" else None

    def onto_two_devices(build):
        model, second = build().clone(), build.__wrapped__()  # of the same weights
        second.model.current_patcher = second

        def outer_sample(executor, *args, **kwargs):
            options = executor.class_obj.model_options
            options["multigpu_clones"] = dict(zip(DEVICES, (executor.class_obj.model_patcher, second), strict=True))
            if pool:
                options["multigpu_thread_pool"] = pool
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "two devices", outer_sample)
        return model, second.get_model_object("diffusion_model")

    yield onto_two_devices
    if pool:
        pool.shutdown()


@pytest.mark.parametrize("build", [models.sd15, models.flux])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_two_devices_equal_one(build, cfg, spread, composed):
    channels = 16 if build is models.flux else 4
    run = Run(cfg=cfg, latent={"samples": torch.zeros(2, channels, 8, 12)})
    model, second = spread(build)
    calls = []
    handle = second.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        result = run.ksampler(patched(model, SCALE, "auto"))
    finally:
        handle.remove()
    assert calls or cfg == 1.0, "the second device must have taken part"
    alone = run.ksampler(patched(build(), SCALE, "auto"))
    composed.check("MultiGPU (two devices that are one CPU)", PLAIN, result, alone)
    assert relative_error(result, run.ksampler(build())) > 1e-4
