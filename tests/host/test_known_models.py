"""A model read off its file's header has the layers of the model itself."""

import functools

import comfy.model_detection
import comfy.ops
import comfy.samplers
import folder_paths
import pytest
import torch
from pag_pack.nodes.host.editor import known_models
from pag_pack.nodes.host.editor.known_models import UnknownFamilyError, of_family, of_loader
from pag_pack.nodes.host.editor.meta_models import build
from pag_pack.nodes.host.editor.model_files import ModelFileError
from pag_pack.nodes.host.editor.published import PUBLISHED
from pag_pack.nodes.host.models.adm_files import FOLDER
from pag_pack.nodes.host.models.adm_model import HostConfig
from pag_pack.nodes.host.models.layers import UnsupportedModelError, model_layers, network_layers
from pag_pack.nodes.research.adm import SHIPPED, PAGADMLoader
from support.safetensors_files import write_sparse

from .older import what_older_hosts_lack

FILE = "model.safetensors"
CHECKPOINT = {"node": "CheckpointLoaderSimple", "input": "ckpt_name", "file": FILE}
DIFFUSION_MODEL = {"node": "UNETLoader", "input": "unet_name", "file": FILE}
ADM = {"node": "PAGADMLoader", "input": "ckpt_name", "file": FILE}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The path of a file in the host's only model folder."""
    for kind in ("checkpoints", "diffusion_models", FOLDER):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind,
                            ([str(tmp_path)], folder_paths.supported_pt_extensions))
        folder_paths.filename_list_cache.pop(kind, None)
    yield tmp_path / FILE
    for kind in ("checkpoints", "diffusion_models", FOLDER):
        folder_paths.filename_list_cache.pop(kind, None)


@functools.cache
def shapes(family: str) -> dict[str, torch.Size]:
    """The tensors of a family's file, as its authors published them."""
    shape = PUBLISHED[family]
    config = HostConfig(shape, {}) if family.startswith("ADM") else \
        comfy.model_detection.model_config_from_unet_config(dict(shape))
    with what_older_hosts_lack(AttributeError):
        network = build(config, {}).diffusion_model
    within = "core." if family == "PixelDiT" else ""  # where its authors' file keeps the network
    return {within + name: tensor.shape for name, tensor in network.state_dict().items()}


def drawn(known, share=lambda share: share) -> list:
    """All that the editor is told of a model's layers; `share` makes of a cost what is compared."""
    found = known.layers
    return [found.auto, *((layer.name, layer.heads, layer.aliases, share(found.share({layer: None})))
                          for layer in found.layers)]


def nearly(share: float):
    """A file tells the size of what its network was made with, but not all that its authors call by name."""
    return pytest.approx(share, abs=1e-3)


@pytest.mark.in_turn("loader")
@pytest.mark.parametrize("loader", [CHECKPOINT, DIFFUSION_MODEL], ids=lambda loader: loader["node"])
@pytest.mark.parametrize("family", [name for name in PUBLISHED if not name.startswith("ADM")])
def test_a_familys_file_has_the_familys_layers(file, family, loader):
    if loader is CHECKPOINT:
        of_checkpoint = {f"model.diffusion_model.{name}": shape for name, shape in shapes(family).items()}
        write_sparse(file, of_checkpoint | {"first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3]})
    else:
        write_sparse(file, shapes(family))
    assert drawn(of_loader(loader)) == drawn(of_family(family), nearly)


def test_an_adm_file(file):
    write_sparse(file, shapes("ADM 256"))
    assert drawn(of_loader(ADM)) == drawn(of_family("ADM 256"))


def test_a_diffusers_u_net(file):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768)  # every other default is SD 1.5's
    write_sparse(file, {name: tensor.shape for name, tensor in network.state_dict().items()})
    assert drawn(of_loader(DIFFUSION_MODEL)) == drawn(of_family("SD 1.5"))


def test_the_shipped_file_is_drawn_as_its_loaded_model_is():
    known = of_loader({"node": "PAGADMLoader", "input": "ckpt_name", "file": SHIPPED})
    loaded = model_layers(PAGADMLoader.execute(SHIPPED).result[0])
    assert [(layer.name, layer.addresses, layer.heads) for layer in known.layers.layers] == [
        (layer.name, layer.addresses, layer.heads) for layer in loaded.layers]
    assert list(known.layers.layers.values()) == list(loaded.layers.values())
    assert (known.layers.auto, known.layers.source, known.layers.cost) == (loaded.auto, loaded.source, loaded.cost)


@pytest.mark.parametrize("family", ["SD 1.5", "Flux"])
def test_a_quantised_model_costs_the_same(family, monkeypatch):
    """Its linear layers are of another class."""
    expected = of_family(family).layers
    monkeypatch.setattr(comfy.ops, "disable_weight_init", comfy.ops.mixed_precision_ops())
    config = comfy.model_detection.model_config_from_unet_config(dict(PUBLISHED[family]))
    network = build(config, {}).diffusion_model
    assert not any(isinstance(module, torch.nn.Linear) for module in network.modules())
    assert network_layers(network).cost == expected.cost


def test_a_file_that_changed_is_read_again(file):
    write_sparse(file, shapes("SD 1.5"))
    first = of_loader(DIFFUSION_MODEL)
    assert of_loader(DIFFUSION_MODEL) is first
    write_sparse(file, shapes("PixArt Sigma"))
    assert of_loader(DIFFUSION_MODEL).layers.family.name == "PixArt"


@pytest.mark.parametrize(("tensors", "loader", "quoted"), [
    ({"lora_up.weight": [4, 8]}, CHECKPOINT, "does not recognize"),
    ({"first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3]}, CHECKPOINT, "does not recognize"),
    ({"joint_blocks.0.context_block.attn.qkv.weight": [9, 3]}, CHECKPOINT, "no complete model"),
    ({"a": [1]}, ADM, "not an ADM"),
])
def test_a_file_without_a_model_is_refused(file, tensors, loader, quoted):
    write_sparse(file, tensors)
    with pytest.raises(ModelFileError, match=rf"{FILE}.*{quoted}"):
        of_loader(loader)


def test_a_model_that_pag_cannot_work_on_is_refused_with_the_reason(file, monkeypatch):
    config = comfy.model_detection.model_config_from_unet_config({"audio_model": "ace"})
    network = build(config, {}).diffusion_model
    write_sparse(file, {name: tensor.shape for name, tensor in network.state_dict().items()})

    def refuse(network: torch.nn.Module) -> None:
        raise UnsupportedModelError("it is refused here")

    monkeypatch.setattr(known_models, "network_layers", refuse)
    with pytest.raises(ModelFileError, match="it is refused here"):
        of_loader(DIFFUSION_MODEL)


def test_metadata_that_claims_a_bottomless_network_is_refused(file):
    config = comfy.model_detection.model_config_from_unet_config(
        {"image_model": "ltxv", "num_layers": 1, "attention_head_dim": 64, "cross_attention_dim": 2048})
    network = build(config, {}).diffusion_model
    write_sparse(file, {name: tensor.shape for name, tensor in network.state_dict().items()},
                 {"config": '{"transformer": {"num_layers": 1000000000}}'})
    with pytest.raises(ModelFileError, match="more than 1000 blocks"):
        of_loader(DIFFUSION_MODEL)


def test_an_unknown_family_lists_those_there_are():
    with pytest.raises(UnknownFamilyError, match=r"'SD 9'.*SD 1\.5, SD 2\.1, SDXL"):
        of_family("SD 9")


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
def test_steps_lie_where_the_host_puts_them(scheduler):
    known = of_family("SD 1.5")
    sampler = comfy.samplers.KSampler(known, 10, "cpu", "euler", scheduler, 0.6)
    assert known.sigmas(10, scheduler, 0.6) == sampler.sigmas[:-1].tolist()
    assert known.sigmas(10, scheduler)[0] == pytest.approx(14.61, abs=0.02)
