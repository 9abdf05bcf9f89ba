"""The perturbed rows join at the first perturbed layer: fewer rows before it, the same result with and without."""

from contextlib import contextmanager

import pytest
import torch
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, patched, relative_error

SCALE = 3.0


@contextmanager
def rows_through(module: torch.nn.Module, batch: int):
    """The number of rows in each call of a module."""
    rows: list[int] = []
    # A hook after it, for those of the prefix may take rows out in front of it.
    def note(module, args, output) -> None:
        rows.append(args[0].shape[0] // batch)

    note.__module__ = "torch"  # another node's hook would be reason enough for a call of its own
    handle = module.register_forward_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(("cfg", "plain_rows"), [(1.0, 1), (7.0, 2)])
@pytest.mark.parametrize(("family", "layers", "before", "after"), [
    (models.sd15, "m0", "input_blocks.0.0", "out.2"),
    (models.sd15, "m0", "input_blocks.5.0.out_layers.3", "middle_block.2.out_layers.3"),
    (models.sd15, "m0,u0", "middle_block.0.out_layers.3", "output_blocks.0.0.out_layers.3"),
    (models.sd15, "u3", "output_blocks.4.0.out_layers.3", "out.2"),
    (models.sdxl, "m0.1", "input_blocks.5.0.out_layers.3", "output_blocks.0.0.out_layers.3"),
    (models.flux, "single.1", "double_blocks.0.img_attn.qkv", "final_layer.linear"),
    (models.flux, "double.1", "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"),
], ids=lambda value: getattr(value, "__name__", value))
def test_rows_join_at_the_first_perturbed_layer(family, layers, before, after, cfg, plain_rows):
    # Prompts of one length, for on Flux the host runs others in separate calls.
    run = Run(cfg=cfg, latent=models.empty_latent(2), negative=models.conditioning(2, tokens=14))
    before, after = (family().model.diffusion_model.get_submodule(name) for name in (before, after))
    for share, rows_before in ((True, plain_rows), (False, plain_rows + 1)):
        with rows_through(before, 2) as early, rows_through(after, 2) as late:
            run.model_patch(family(), SCALE, layers, PAGOptions(share_prefix=share))
        assert early == [rows_before] * run.steps
        assert late == [plain_rows + 1] * run.steps


@pytest.mark.parametrize("layers", ["double.0", "double.1", "single.0", "single.2", "double.1,single.1", "auto", "all"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_a_transformer_gives_the_same_with_and_without(layers, cfg):
    run = Run(cfg=cfg, latent=models.empty_latent(2))
    whole = run.model_patch(models.flux(), SCALE, layers, PAGOptions(share_prefix=False))
    assert relative_error(run.model_patch(models.flux(), SCALE, layers), whole) < 1e-4
    assert relative_error(run.ksampler(models.flux()), whole) > 1e-4


@pytest.mark.parametrize("kind", ["identity", "skip_block"])
@pytest.mark.parametrize("order", [("double.1", "single.1"), ("single.1", "double.1")], ids=" then ".join)
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_two_patches_of_a_transformer(cfg, order, kind):
    """Where one's layer comes first, the other's row is not in the batch yet."""
    run, options = Run(cfg=cfg, latent=models.empty_latent(2)), {
        share: PAGOptions(kind, share_prefix=share) for share in (True, False)}
    results = [run.ksampler(patched(patched(models.flux(), SCALE, order[0], how), SCALE, order[1], how))
               for how in options.values()]
    assert relative_error(*results) < 1e-4
    assert relative_error(run.model_patch(models.flux(), SCALE, order[1], options[False]), results[1]) > 1e-3


@pytest.mark.parametrize(("later", "rows_before", "rows_between"), [("u0", 2, 4), ("u3", 3, 3)])
def test_two_patches_join_where_most_is_saved(later, rows_before, rows_between):
    """At the earlier of their layers; where the later one is far behind it, the other row runs from the start."""
    run = Run()
    network = models.sd15().model.diffusion_model
    with rows_through(network.get_submodule("input_blocks.0.0"), 1) as before, \
            rows_through(network.get_submodule("output_blocks.0.0.out_layers.3"), 1) as between:
        run.ksampler(patched(patched(models.sd15(), 1.0, later), 2.0, "m0"))
    assert before == [rows_before] * run.steps
    assert between == [rows_between] * run.steps
