"""Every family of the host, small and random: which layers it has, and that perturbing them is exact.

The reference is the same network run for the perturbed row alone, in which the selected layer's attention is worked
out in full in fp64: the whole map, with everything off the diagonal of the image-to-image block masked. It finds layers
by counting attention calls and image tokens by the size of the input, not by what the pack knows of a family.

With PAG_FAMILY_TABLE=FILE the README's table of families is written to FILE, as Markdown.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from contextlib import contextmanager
from pathlib import Path

import comfy.model_base
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from pag_pack.nodes.host.hooks import replay as replay_module
from pag_pack.nodes.host.hooks.attention import LayerPerturbation
from pag_pack.nodes.host.hooks.entry import Answers
from pag_pack.nodes.host.hooks.joint import JointPrefix
from pag_pack.nodes.host.hooks.kept import PrefixStore
from pag_pack.nodes.host.hooks.replay import Replay
from pag_pack.nodes.host.hooks.u_nets import UNetPatch
from pag_pack.nodes.host.hooks.ways import Patch, way_in
from pag_pack.nodes.host.models.families import FAMILIES
from pag_pack.nodes.host.models.layers import UnsupportedModelError, model_layers
from pag_pack.nodes.host.models.structure import family_of, group_modules
from pag_pack.pag_core.attention import PerturbationError
from pag_pack.pag_core.perturbation import Perturbation
from torch.utils.flop_counter import FlopCounterMode

from .family_models import CASES, OPTIONS, Case, forward
from .full_map import FullMap
from .older import newest_only, what_older_hosts_lack

PLAIN, PERTURBED = "plain", "perturbed"  # the rows' uuids
NO_DENOISERS = {"DepthAnything3Net", "RTv4", "SAM3Model"}  # networks of the host that estimate depth, or find objects


class Patcher:
    """As much of a ModelPatcher as reading the layers takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def get_model_object(self, name: str) -> torch.nn.Module:
        return self.network


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def network(case) -> torch.nn.Module:
    return case.build().requires_grad_(False)  # the counter of FLOPs takes no other


@pytest.fixture(scope="module")
def plain(case, network) -> tuple[torch.Tensor, torch.Tensor]:
    """Both rows of the batch without any perturbation; skips where an older host fails at that by itself."""
    with torch.inference_mode(), what_older_hosts_lack(RuntimeError):
        return forward(network, case.batch(), {}).chunk(2)


@pytest.fixture(scope="module")
def table():
    """Collects the table of families, for the README."""
    rows: dict[str, dict] = {}
    yield rows
    if path := os.environ.get("PAG_FAMILY_TABLE"):
        Path(path).write_text(family_table(rows))


def family_table(rows: dict[str, dict]) -> str:
    """Markdown from {case: {"family", "layers", "effects", "errors"}}."""
    lines = ["| family | tested as | layers | auto | effect | error |", "|---|---|---|---|---|---|"]
    for name, found in rows.items():
        effects, errors = found["effects"], found["errors"]
        lines.append(f"| {found['family']} | {name} | {', '.join(found['layers'])} | {found['auto']} | "
                     f"{min(effects):.0e} to {max(effects):.0e} | {max(errors):.0e} |")
    return "\n".join([*lines, ""])


def patch(network: torch.nn.Module, name: str, perturbation: Perturbation, heads=None) -> Patch:
    """Our code, with one layer selected."""
    found = model_layers(Patcher(network))
    key = next(key for layer, key in found.layers.items() if layer.name == name)
    return way_in(found, {key: LayerPerturbation(name, perturbation, heads)})


def run(case: Case, network: torch.nn.Module, patch: Patch) -> tuple[torch.Tensor, torch.Tensor, set[str]]:
    """(plain row, perturbed row, layers left alone) of a batch with one of each."""
    options, skipped = {"uuids": [PLAIN, PERTURBED], "cond_or_uncond": [1, 0]}, set()
    with patch.around(network, options, PERTURBED.__eq__, skipped.add, ()) as options:
        return *forward(network, case.batch(), options).chunk(2), skipped


def brute_force(case: Case, network: torch.nn.Module, layer: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the perturbed row should be."""
    full_map = FullMap(case, layer)
    inputs, options = case.row(1), {"uuids": [PERTURBED], "cond_or_uncond": [0]}
    with monkeypatch.context() as patch:
        if case.attention:
            module = importlib.import_module(f"comfy.ldm.{case.attention}")
            attention = module.optimized_attention
            patch.setattr(module, "optimized_attention", lambda *args, **kwargs: full_map(attention, *args, **kwargs))
        else:
            options["optimized_attention_override"] = full_map
        out = forward(network, inputs, options)
    assert full_map.replaced and next(full_map.calls, None) is None  # each call was counted, the layer's among them
    return out


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a − b| / max|b|; NaN stays NaN, which no comparison lets pass."""
    return ((a - b).abs().max() / b.abs().max()).item()


def hooks(network: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_layers_are_found_by_name_with_their_heads(case, network, plain):
    assert all(row.isfinite().all() for row in plain)
    assert {layer.name: layer.heads for layer in model_layers(Patcher(network)).layers} == dict.fromkeys(
        case.layers, case.heads)


def test_every_layer_is_perturbed_as_by_the_full_map(case, network, plain, table, monkeypatch):
    found = model_layers(Patcher(network))
    entry = table[case.name] = {"family": found.name, "layers": case.layers, "auto": found.auto, "effects": [],
                                "errors": []}
    for name in case.layers:
        unchanged, perturbed, skipped = run(case, network, patch(network, name, Perturbation()))
        assert not skipped
        assert torch.equal(unchanged, plain[0]), f"{name} changed the plain row"
        entry["effects"].append(relative(perturbed, plain[1]))
        entry["errors"].append(relative(perturbed, brute_force(case, network, name, monkeypatch)))
        assert entry["effects"][-1] > 1e-3, name
        assert entry["errors"][-1] <= 1e-4, name


def test_strength_and_single_heads_lie_between_plain_and_perturbed(case, network, plain):
    name = case.layers[0]
    _, full, _ = run(case, network, patch(network, name, Perturbation()))
    _, every_head, _ = run(case, network, patch(network, name, Perturbation(), frozenset(range(case.heads))))
    assert relative(every_head, full) <= 1e-5
    for kept in (patch(network, name, Perturbation(strength=0.5)),
                 patch(network, name, Perturbation(), frozenset({1}))):
        unchanged, some, skipped = run(case, network, kept)
        assert not skipped
        assert torch.equal(unchanged, plain[0])
        assert relative(some, plain[1]) > 1e-4
        assert relative(some, full) > 1e-4


@pytest.mark.parametrize("kind", ["temperature", "random_mask"])
def test_other_perturbations_run_or_are_refused_with_a_reason(case, network, plain, kind):
    name = case.layers[-1]
    if case.attention:
        with pytest.raises(PerturbationError, match=f"not {kind}: ComfyUI gives no access"):
            patch(network, name, Perturbation(kind))
        return
    unchanged, perturbed, skipped = run(case, network, patch(network, name, Perturbation(kind)))
    assert not skipped
    assert torch.equal(unchanged, plain[0])
    assert relative(perturbed, plain[1]) > 1e-4


def conditional_row_last(value, frames: int):
    """The first row perturbed, the second unconditional, the third the conditional row that the first mirrors."""
    if isinstance(value, list):
        return [conditional_row_last(item, frames) for item in value]
    if isinstance(value, torch.Tensor) and value.shape[0] in (3, 3 * frames):
        perturbed, _, conditional = value.chunk(3)
        perturbed.copy_(conditional)
    return value


def counted(call) -> tuple[torch.Tensor, int]:
    with FlopCounterMode(display=False) as counter:
        return call(), counter.get_total_flops()


@pytest.mark.in_turn("last")
@pytest.mark.usefixtures("plain")  # which skips where the host alone fails
@pytest.mark.parametrize("last", [False, True], ids=["first layer", "last layer"])
def test_rows_that_join_late_are_the_same(case, network, last):
    """In one call with their conditional rows, and in a call of their own from what these left."""
    inputs = {name: conditional_row_last(value, case.frames) for name, value in case.batch(3).items()}
    found = model_layers(Patcher(network))
    ours = patch(network, case.layers[-1 if last else 0], Perturbation())
    units = found.units(network)
    first = min(units.places[key] for key in ours.layers)
    options = {"uuids": [PERTURBED, "unconditional", PLAIN], "cond_or_uncond": [2, 1, 0]}
    batch, declined = 3 * case.frames, set()

    def perturbed(inputs, options):
        with ours.around(network, options, PERTURBED.__eq__, declined.add, ()) as options:
            return forward(network, inputs, options)

    def joint():
        prefix = JointPrefix(units, first, {PERTURBED: PLAIN}, declined.add)
        with prefix.around(options, batch):
            return perturbed(inputs, options)

    whole, flops = counted(lambda: perturbed(inputs, options))
    late, fewer = counted(joint)
    assert not declined
    assert fewer < flops or not first
    assert relative(late, whole) <= 1e-5

    store = PrefixStore(False, lambda device: 1e12)
    store.add(first, 0)
    rest, alone = ({name: part(value, slice(rows, rows + count), case.frames) for name, value in inputs.items()}
                   for rows, count in ((1, 2), (0, 1)))
    with store.recording(units, {"uuids": ["unconditional", PLAIN], "cond_or_uncond": [1, 0]}, 2 * case.frames, None):
        plain = forward(network, rest, {"uuids": ["unconditional", PLAIN], "cond_or_uncond": [1, 0]})
    assert relative(plain, whole.chunk(3)[1:] and torch.cat(whole.chunk(3)[1:])) <= 1e-5
    options = {"uuids": [PERTURBED], "cond_or_uncond": [0]}
    own, all_flops = counted(lambda: perturbed(alone, options))
    if first and units.is_stateless:
        kept = store.take([PERTURBED], {PERTURBED: PLAIN})
        assert kept, store.lost
        with blank_is_nan(), Replay(units, first, kept, torch.device("cpu"), lambda: "", Answers()).around():
            resumed, fewer = counted(lambda: perturbed(alone, options))
        assert fewer < all_flops
        assert relative(resumed, own) <= 1e-5
    assert relative(own, whole.chunk(3)[0]) <= 1e-5


def part(value, rows: slice, frames: int):
    if isinstance(value, list):
        return [part(item, rows, frames) for item in value]
    if isinstance(value, torch.Tensor) and value.shape[0] in (3, 3 * frames):
        return torch.cat(value.chunk(3)[rows])
    return value


@contextmanager
def blank_is_nan():
    """What stands for outputs that no one reads holds no number, so that reading it shows."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(replay_module, "blank", lambda shape, dtype, _: torch.full(shape, torch.nan, dtype=dtype))
        yield


def test_nothing_stays_behind_not_even_after_an_error(case, network, plain):
    before = hooks(network)
    ours = patch(network, case.layers[0], Perturbation())
    if isinstance(ours, UNetPatch):
        module = network.input_blocks[-1][-1]
    else:
        (group, index), = ours.layers
        module = list(group_modules(network, next(g for g in ours.family.groups if g.name == group)))[index]

    def fail(*_):
        raise RuntimeError("out of memory, say")

    handle = module.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(case, network, ours)
    handle.remove()
    assert hooks(network) == before
    assert torch.equal(forward(network, case.batch(), {"uuids": [PLAIN, PERTURBED]}), torch.cat(plain))
    run(case, network, ours)
    assert hooks(network) == before


@newest_only
def test_every_family_is_tested():
    tested = {model_layers(Patcher(case.build())).name for case in CASES}
    assert tested == {"U-Net", *(family.name for family in FAMILIES)}


def test_every_network_of_the_host_is_known():
    """Whatever the host gains in a later version shows here, before a user finds it out."""
    names = set(re.findall(r"unet_model=([\w.]+)", inspect.getsource(comfy.model_base))) - {"unet_model"}
    for name in names:
        module, _, cls = name.rpartition(".")
        network = getattr(importlib.import_module(module or "comfy.model_base"), cls)
        known = issubclass(network, UNetModel) or family_of(object.__new__(network))
        assert known or cls in NO_DENOISERS, name


@pytest.mark.parametrize(("name", "depth", "auto"), [
    ("SD3.5", {"depth": 24, "num_blocks": 24}, "7-9"), ("HunyuanDiT", {"depth": 40}, "14"),
    ("PixArt", {"depth": 28}, "14"), ("Flux", {"depth": 19, "depth_single_blocks": 38}, "single.9"),
    ("Wan", {"num_layers": 40}, "20")])
def test_auto_is_the_published_choice_or_the_middle(name, depth, auto):
    case = next(case for case in CASES if case.name.startswith(name))
    module, _, cls = case.network.rpartition(".")
    network = getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)(
        **case.arguments | depth, **OPTIONS | {"device": "meta"})
    assert model_layers(Patcher(network)).auto == auto


def test_guides_that_split_the_attention_of_ltx_are_left_alone_and_reported():
    from comfy.ldm.lightricks.model import GuideAttentionMask

    case = next(case for case in CASES if case.name == "LTX-Video")
    network = case.build()
    network._build_guide_self_attention_mask = lambda *_: GuideAttentionMask(case.image, case.image - 6, 6,
                                                                             torch.full((1, 6), 0.5))
    expected = forward(network, case.batch(), {})
    *rows, skipped = run(case, network, patch(network, "1", Perturbation()))
    assert skipped == {"1"}
    assert torch.equal(torch.cat(rows), expected)


def test_attention_without_one_map_of_its_own_is_no_layer():
    from comfy.ldm.audio.dit import AudioDiffusionTransformer
    from comfy.ldm.pixart.pixartms import PixArtMS

    compressed = {"sampling": "conv", "scale_factor": 2, "kv_compress_layer": [1]}
    pixart = next(case for case in CASES if case.name == "PixArt")
    network = PixArtMS(**pixart.arguments | {"kv_compress_config": compressed}, **OPTIONS)
    assert [layer.name for layer in model_layers(Patcher(network)).layers] == ["0"]
    audio = next(case for case in CASES if case.name.startswith("Stable Audio"))
    with what_older_hosts_lack(TypeError):
        network = AudioDiffusionTransformer(**audio.arguments, attn_kwargs={"differential": True}, **OPTIONS)
    with pytest.raises(UnsupportedModelError, match="Stable Audio model has no self-attention layer"):
        model_layers(Patcher(network))


def test_unknown_networks_are_refused_with_what_works():
    with pytest.raises(UnsupportedModelError, match=r"does not support the model Linear.*SDXL.*Flux.*Wan"):
        model_layers(Patcher(torch.nn.Linear(1, 1)))
