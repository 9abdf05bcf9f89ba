"""From npm packages to pictures: which drawings are taken, how they look, which are held out. No network."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch
from harness.errors import HarnessError
from training import drawings, packages

DISC = '<circle cx="16" cy="16" r="16" fill="#f00"/>'
LEFT = '<path d="M0 0h16v32H0z" fill="#00f"/>'
CATEGORIES = {
    "Smileys & Emotion": ["grin", "wink", "wink-dark"],
    "People & Body": ["wave", "wave-dark-skin-tone", "pair", "pair-dark-skin-tone-light-skin-tone-bald"],
    "Objects": ["lamp-light", "old"],
    "Flags": ["pirate"],
}


def pack(folder, package, icons, categories) -> packages.Package:
    """An archive as npm makes them, and the package that pins it."""
    content = {"icons.json": {"width": 32, "height": 32, "icons": icons}, "metadata.json": categories}
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / package.file, "w:gz") as tar:
        for name, value in content.items():
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha512((folder / package.file).read_bytes()).digest()
    return replace(package, integrity="sha512-" + base64.b64encode(digest).decode())


@pytest.fixture
def two(tmp_path):
    """Two styles, of which the second takes its categories from the first."""
    names = [name for group in CATEGORIES.values() for name in group]
    first = packages.Package("first", "1.0.0", "", "MIT", "Somebody")
    second = packages.Package("second", "2.0.0", "", "CC-BY-4.0", "Somebody else", tones="", categories_of="first")
    plain = {name: {"body": DISC} for name in (*names, "unlabelled")}
    plain["old"]["hidden"] = True
    return (pack(tmp_path, first, plain, {"categories": CATEGORIES}),
            pack(tmp_path, second, {name: {"body": LEFT} for name in ("grin", "wink", "wink-dark", "lamp-light")}, {}))


def test_flags_skin_tones_and_hidden_or_unlabelled_drawings_are_left_out(tmp_path, two):
    found = [(d.style, d.concept, d.category) for d in drawings.read(tmp_path, two)]
    assert found == [
        ("first", "grin", "Smileys"), ("first", "wink", "Smileys"), ("first", "wink-dark", "Smileys"),
        ("first", "wave", "People"), ("first", "pair", "People"), ("first", "lamp-light", "Objects"),
        ("second", "grin", "Smileys"), ("second", "wink", "Smileys"), ("second", "lamp-light", "Objects"),
    ]


def test_a_picture_is_coloured_and_stands_on_white_with_a_margin():
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{LEFT}</svg>'
    picture = torch.from_numpy(drawings.render(svg, 32))
    assert picture.shape == (3, 32, 32)
    assert (picture[:, :2] == 255).all()
    assert (picture[:, :, :2] == 255).all()
    assert picture[:, 16, 8].tolist() == [0, 0, 255]
    assert (picture[:, :, 16:] == 255).all()


def test_drawings_are_rendered_once_and_labelled_in_the_order_asked_for(tmp_path, two, monkeypatch):
    made = drawings.get_drawings(16, tmp_path, two)
    monkeypatch.setattr(drawings, "save", None)
    again = drawings.get_drawings(16, tmp_path, two)
    assert torch.equal(made.images, again.images)
    chosen = again.only(("Objects", "Smileys"))
    assert chosen.labels.tolist() == [1, 1, 1, 0, 1, 1, 0]
    assert chosen.concepts[3] == "lamp-light"
    assert chosen.styles == ["first"] * 4 + ["second"] * 3
    with pytest.raises(HarnessError, match=r"categories Cars: expected names from Smileys, Animals"):
        again.only(("Cars",))


def test_a_concept_is_held_out_in_every_style_or_in_none(tmp_path, two):
    found = drawings.get_drawings(16, tmp_path, two)
    sides = {}
    for concept, side in zip(found.concepts, found.held_out.tolist(), strict=True):
        assert sides.setdefault(concept, side) is side
    (images, _), (held_out, _) = found.part(False), found.part(True)
    assert len(images) + len(held_out) == len(found.concepts)
    many = [drawings.is_held_out(f"concept {n}") for n in range(2000)]
    assert sum(many) / 2000 == pytest.approx(drawings.HELD_OUT, abs=0.03)


def test_a_package_that_is_not_what_was_pinned_is_named(tmp_path, two):
    (tmp_path / two[0].file).write_bytes(b"another")
    with pytest.raises(HarnessError, match=r"first-1\.0\.0\.tgz is not @iconify-json/first 1\.0\.0: sha512-.*Delete"):
        packages.archive(two[0], tmp_path)


def test_npm_fetches_what_is_missing_and_its_failure_comes_with_the_remedy(tmp_path, two, monkeypatch):
    script = tmp_path / "npm"
    script.write_text(f'#!/bin/sh\n[ "$3" = @iconify-json/first@1.0.0 ] && cp "{tmp_path / two[0].file}" . && exit\n'
                      "echo E404 not there >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(packages, "npm", lambda: [str(script)])
    assert packages.archive(two[0], tmp_path / "cache").is_file()
    with pytest.raises(HarnessError, match=r"(?s)npm pack @iconify-json/second@2.0.0 failed:\nE404.*put iconify-json"):
        packages.archive(two[1], tmp_path / "cache")


def test_what_is_pinned_names_its_licence():
    assert {package.license for package in packages.PACKAGES} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    assert all(package.author and package.integrity.startswith("sha512-") for package in packages.PACKAGES)
