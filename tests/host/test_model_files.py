"""Which files are looked into, and which are refused."""

import os
from pathlib import Path

import folder_paths
import pytest
from pag_pack.nodes.host.editor.model_files import ModelFileError, find_file, header_of
from pag_pack.nodes.host.models.adm_files import FOLDER
from support.safetensors_files import write_sparse

posix = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """checkpoints and unet in an empty place, registered as the host's only model folders."""
    for kind, name in (("checkpoints", "checkpoints"), ("diffusion_models", "unet"), (FOLDER, "checkpoints")):
        (tmp_path / "models" / name).mkdir(parents=True, exist_ok=True)
        entry = [str(tmp_path / "models" / name)], folder_paths.supported_pt_extensions
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, entry)
        folder_paths.filename_list_cache.pop(kind, None)
    yield tmp_path / "models"
    for kind in ("checkpoints", "diffusion_models", FOLDER):
        folder_paths.filename_list_cache.pop(kind, None)


def checkpoint(file: str, node: str = "CheckpointLoaderSimple", widget: str = "ckpt_name") -> dict:
    return {"node": node, "input": widget, "file": file}


def tiny(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_sparse(path, {"a": [2, 3]})


@pytest.mark.parametrize(("loader", "folder", "kind"), [
    (checkpoint("sub/m.safetensors"), "checkpoints", "checkpoints"),
    (checkpoint("sub/m.safetensors", "ImageOnlyCheckpointLoader"), "checkpoints", "checkpoints"),
    (checkpoint("sub/m.safetensors", "UNETLoader", "unet_name"), "unet", "diffusion_models"),
    (checkpoint("sub/m.safetensors", "PAGADMLoader"), "checkpoints", FOLDER),
])
def test_the_loader_decides_the_folder(folders, loader, folder, kind):
    path = tiny(folders / folder / "sub" / "m.safetensors")
    found, status, found_kind = find_file(loader)
    assert found == path
    assert status.st_size == path.stat().st_size
    assert found_kind == kind
    assert header_of(found).tensors["a"].shape == (2, 3)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "sub/../../../secret.safetensors", "{root}",
                                  "..\\..\\secret.safetensors", "/etc/passwd", "missing.safetensors", "", ".",
                                  "m.safetensors\0", "a" * 5000])
def test_what_the_loader_does_not_list_is_refused(folders, tmp_path, name):
    tiny(folders / "checkpoints" / "m.safetensors")
    secret = tiny(tmp_path / "secret.safetensors")
    with pytest.raises(ModelFileError, match="There is no model") as caught:
        find_file(checkpoint(name.replace("{root}", str(secret))))
    assert len(str(caught.value)) < 600
    assert str(tmp_path) not in str(caught.value).replace(str(secret), "")  # where the folders are is not told


@pytest.mark.parametrize(("node", "widget"), [
    ("UnetLoaderGGUF", "unet_name"), ("CheckpointLoaderSimple", "unet_name"), ("LoraLoader", "lora_name"), ("", "")])
def test_an_unknown_loader_is_refused_with_the_way_out(folders, node, widget):
    with pytest.raises(ModelFileError, match="family by hand"):
        find_file(checkpoint("m.safetensors", node, widget))


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "m.safetensors.bin"])
def test_other_formats_are_refused_by_name(folders, name):
    (folders / "checkpoints" / name).write_bytes(b"\x80\x04")
    with pytest.raises(ModelFileError, match=r"neither a \.safetensors"):
        find_file(checkpoint(name))


@posix
def test_a_link_out_of_the_folders_is_refused(folders, tmp_path):
    outside = tiny(tmp_path / "outside" / "m.safetensors")
    (folders / "checkpoints" / "m.safetensors").symlink_to(outside)
    (folders / "checkpoints" / "more").symlink_to(outside.parent, target_is_directory=True)
    for name in ("m.safetensors", "more/m.safetensors"):
        with pytest.raises(ModelFileError, match="outside the model folders"):
            find_file(checkpoint(name))


@posix
def test_links_among_the_folders_and_to_a_whole_folder_are_followed(folders, tmp_path, monkeypatch):
    real = tiny(folders / "unet" / "m.safetensors")
    (folders / "checkpoints" / "linked.safetensors").symlink_to(real)
    assert find_file(checkpoint("linked.safetensors"))[0] == real
    elsewhere = tiny(tmp_path / "disk" / "m.safetensors")
    (folders / "linked").symlink_to(elsewhere.parent, target_is_directory=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints",
                        ([str(folders / "linked")], folder_paths.supported_pt_extensions))
    assert find_file(checkpoint("m.safetensors"))[0] == elsewhere


@posix
def test_a_link_to_nowhere_is_refused(folders, tmp_path):
    (folders / "checkpoints" / "m.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelFileError, match="broken link"):
        find_file(checkpoint("m.safetensors"))


def test_a_file_that_is_cut_off_is_named(folders):
    path = tiny(folders / "checkpoints" / "m.safetensors")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ModelFileError, match=r"m\.safetensors cannot be read.*Download or copy it again"):
        header_of(path)
