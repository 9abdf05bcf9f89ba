"""The ADM network against the paper's own code, and its configuration read back from weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pag_core.adm import ADMConfig, ADMHooks, ADMUNet, AttentionBlock, Upsample
from pag_core.adm_config import read_config

REFERENCE = Path(__file__).parent / "data" / "adm_reference.safetensors"
SMALL = ADMConfig(32, (1, 2, 2), num_res_blocks=1, attention_levels=(1, 2), num_classes=10, head_channels=32)
OPENAI = {
    "64": ADMConfig(192, (1, 2, 3, 4), 3, (1, 2, 3), 1000, qkv_order="new", noise_schedule="cosine", image_size=64),
    "128": ADMConfig(256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 1000, num_heads=4, image_size=128),
    "256": ADMConfig(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 1000, image_size=256),
    "256 unconditional": ADMConfig(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), image_size=256),
    "512": ADMConfig(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), 1000, image_size=512),
}
# Of the same networks: millions of parameters, and self-attention layers.
SIZES = {"64": (295.9, 22), "128": (421.5, 16), "256": (553.8, 16), "512": (559.0, 16)}
SIZES["256 unconditional"] = (552.8, 16)


def shapes_of(config: ADMConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(w.shape) for name, w in ADMUNet(config).state_dict().items()}


def noise(*shape: int, spread: float = 2.0) -> torch.Tensor:
    """Numbers that look random and are the same everywhere: the fractional part of a large sine, in ±spread."""
    x = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 12.9898) * 43758.5453
    return ((x - x.floor()) * 2 - 1).mul(spread).float().reshape(shape)


def deterministic(config: ADMConfig) -> ADMUNet:
    """The network with the weights that the reference was made with."""
    network = ADMUNet(config).eval()
    state = network.state_dict()
    for i, name in enumerate(sorted(state)):
        weight = state[name]
        u = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 12.9898 + i) * 43758.5453
        u = ((u - u.floor()) * 2 - 1).reshape(weight.shape)
        if weight.dim() == 1:
            u = u * 0.1 + (1 if name.endswith("weight") else 0)
        else:
            u = u * (3 / weight[0].numel()) ** 0.5 * (2 if "qkv" in name else 1)
        weight.copy_(u)
    return network


class Identity(ADMHooks):
    """PAG Eq. 13 in the layers of these blocks."""

    def __init__(self, *blocks):
        self.blocks = blocks

    def attention(self, q, k, v, heads, block):
        return v if block in self.blocks else super().attention(q, k, v, heads, block)


@pytest.mark.parametrize(
    ("name", "changes", "perturbed"),
    [
        ("legacy", {}, []),
        ("legacy.perturbed", {}, [("input", 5), ("middle", 0)]),
        ("new", {"qkv_order": "new"}, []),
        ("new.perturbed", {"qkv_order": "new"}, [("input", 5), ("middle", 0)]),
        ("plain_blocks", {"scale_shift_norm": False, "resblock_updown": False}, []),
    ],
)
@torch.inference_mode()
def test_equals_the_authors_network(name, changes, perturbed):
    """The reference was made by guided_diffusion/unet.py in github.com/sunovivid/Perturbed-Attention-Guidance, ba1c0c9:
    UNetModel(16, 3, 32, 6, 1, (2, 4), channel_mult=(1, 2, 2), num_classes=10, num_head_channels=32), perturbed by its
    QKVAttentionLegacyMask(heads, 1.0, True) in input_blocks.5.1 and middle_block.1."""
    network = deterministic(ADMConfig(**{**vars(SMALL), **changes}))
    expected = load_file(REFERENCE)[name]
    got = network(noise(2, 3, 16, 16), torch.tensor([999.0, 250.0]), torch.tensor([3, 7]), Identity(*perturbed))
    assert (got - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_the_reference_tells_perturbed_from_plain():
    reference = load_file(REFERENCE)
    for order in ("legacy", "new"):
        assert (reference[order] - reference[f"{order}.perturbed"]).abs().max() > 0.1


@pytest.mark.parametrize("name", OPENAI)
def test_openai_files_are_recognised(name):
    config = OPENAI[name]
    with torch.device("meta"):
        network = ADMUNet(config)
    shapes = {name: tuple(w.shape) for name, w in network.state_dict().items()}
    assert read_config(shapes) == config
    millions, layers = SIZES[name]
    assert sum(w.numel() for w in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert len(list(network.attention_layers())) == layers
    image = torch.empty(2, 3, config.image_size, config.image_size, device="meta")
    y = torch.zeros(2, dtype=torch.long, device="meta")
    assert network(image, torch.zeros(2, device="meta"), y).shape == (2, 6, config.image_size, config.image_size)


def test_layers_have_the_papers_numbers():
    """PAG Table 1 perturbs input_blocks.14.1, 16.1, 17.1 and middle_block.1 of the 256 model."""
    with torch.device("meta"):
        network = ADMUNet(OPENAI["256"])
    blocks = [block for block, _ in network.attention_layers()]
    assert {("input", 14), ("input", 16), ("input", 17), ("middle", 0)} <= set(blocks)
    assert isinstance(network.get_submodule("input_blocks.14.1"), AttentionBlock)
    assert network.get_submodule("input_blocks.14.1").block == ("input", 14)
    assert network.get_submodule("middle_block.1").block == ("middle", 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 0},
        {"out_channels": 3},
        {"scale_shift_norm": False},
        {"resblock_updown": False},
        {"attention_levels": ()},
        {"attention_levels": (0, 2)},
        {"num_res_blocks": 3},
        {"channel_mult": (1,)},
        {"channel_mult": (0.5, 1, 3), "model_channels": 64},
        {"model_channels": 96, "channel_mult": (1, 2, 3, 4, 5), "attention_levels": (4,)},
    ],
)
def test_configuration_is_read_back(changes):
    changes = {"attention_levels": (0,), **changes} if changes.get("channel_mult") == (1,) else changes
    config = ADMConfig(**{**vars(SMALL), **changes})
    assert read_config(shapes_of(config), head_channels=32) == config


def test_the_unseen_comes_from_arguments_then_metadata_then_defaults():
    shapes = shapes_of(SMALL)
    metadata = {"head_channels": "16", "qkv_order": "new", "noise_schedule": "cosine", "image_size": "32"}
    read = read_config(shapes, metadata)
    assert (read.head_channels, read.qkv_order, read.noise_schedule, read.image_size) == (16, "new", "cosine", 32)
    read = read_config(shapes, metadata, head_channels=32, qkv_order="legacy", noise_schedule="linear")
    assert (read.head_channels, read.qkv_order, read.noise_schedule) == (32, "legacy", "linear")
    read = read_config(shapes)
    assert (read.head_channels, read.qkv_order, read.noise_schedule) == (64, "legacy", "linear")
    assert read_config(shapes_of(OPENAI["128"]), head_channels=64).heads(512) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_channels": 48}, r"head_channels 48 does not divide this model's 64 .* 8, 16, 32, 64"),
        ({"metadata": {"head_channels": "many"}}, "head_channels = 'many'"),
        ({"metadata": {"head_channels": "-1"}}, "head_channels -1"),
        ({"metadata": {"qkv_order": "sideways"}}, "qkv_order is 'sideways', expected one of legacy, new"),
        ({"noise_schedule": "quadratic"}, "noise_schedule is 'quadratic'"),
    ],
)
def test_impossible_facts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_config(shapes_of(SMALL), **arguments)


def spoil(**changes):
    shapes = shapes_of(SMALL)
    for name, shape in changes.items():
        shapes.pop(name)
        if shape is not None:
            shapes[name] = shape
    return shapes


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({}, "no input_blocks.0.0.weight among 0 tensors"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "no input_blocks.0.0.weight"),
        (spoil(**{"input_blocks.0.0.weight": (32, 4, 3, 3)}), "4 input channels"),
        (spoil(**{"input_blocks.0.0.weight": (32, 6, 3, 3)}), "6: a super-resolution model"),
        (spoil(**{"input_blocks.0.0.weight": (32,)}), r"input_blocks.0.0.weight of shape \[32\]"),
        (spoil(**{"out.2.weight": (4, 32, 3, 3)}), "4 output channels"),
        (spoil(**{"middle_block.1.qkv.weight": None}), "middle_block.1.qkv.weight"),
        (spoil(**{"middle_block.1.qkv.weight": (7, 7, 1)}), r"middle_block.1.qkv.weight: expected \(192, 64, 1\)"),
        ({n: s for n, s in shapes_of(SMALL).items() if not n.startswith("output_blocks")}, "0 output blocks"),
        ({n: s for n, s in shapes_of(SMALL).items() if not n.startswith("input_blocks.2.")}, "gaps in input_blocks"),
        ({**shapes_of(SMALL), "extra.weight": (1,)}, "extra.weight"),
    ],
)
def test_what_is_no_adm_is_refused(shapes, found):
    with pytest.raises(ValueError, match=found) as error:
        read_config(shapes)
    assert "not an ADM" in str(error.value)
    assert "expected input_blocks" in str(error.value)


@torch.inference_mode()
def test_no_label_and_label_minus_one_are_the_same():
    network = deterministic(SMALL)
    x, t = noise(2, 3, 16, 16), torch.tensor([500.0, 500.0])
    plain = network(x, t)
    mixed = network(x, t, torch.tensor([-1, 3]))
    assert torch.equal(mixed[0], plain[0])
    assert (mixed[1] - plain[1]).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
@torch.inference_mode()
def test_an_upsampler_repeats_pixels_up_to_the_size_of_its_skip(size):
    layer, x = Upsample(32, torch.nn), noise(1, 32, 4, 5)
    rows, columns = (torch.arange(to) * n // to for n, to in zip((4, 5), size, strict=True))
    torch.testing.assert_close(layer(x, torch.Size(size)), layer.conv(x[:, :, rows][..., columns]))


@torch.inference_mode()
def test_hooks_see_every_block_and_layer_in_order():
    class Recorder(ADMHooks):
        def __init__(self):
            self.blocks, self.attentions = [], []

        def enter(self, block):
            self.blocks.append(block)

        def attention(self, q, k, v, heads, block):
            assert block == self.blocks[-1]
            assert q.shape == k.shape == v.shape and q.is_contiguous()
            self.attentions.append((block, heads))
            return super().attention(q, k, v, heads, block)

    network, recorder = deterministic(SMALL), Recorder()
    network(noise(1, 3, 16, 16), torch.tensor([10.0]), hooks=recorder)
    inputs, outputs = len(network.input_blocks), len(network.output_blocks)
    assert recorder.blocks == [
        *(("input", i) for i in range(inputs)), ("middle", 0), *(("output", i) for i in range(outputs)),
    ]  # fmt: skip
    assert recorder.attentions == list(network.attention_layers())
