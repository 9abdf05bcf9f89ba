"""GGUF files are known by their own header, and a header that lies is refused."""

import struct
from pathlib import Path

import pytest
from pag_pack.nodes.host.editor.gguf_header import read_gguf
from pag_pack.nodes.host.editor.headers import HeaderError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(tensors: dict[str, tuple[int, ...]], entries: bytes = b"", count: int = 0, kind: int = 12) -> bytes:
    """A file whose tensors have these shapes, of quantised numbers unless told otherwise, and no data."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), count), entries]
    for name, shape in tensors.items():
        parts += [text(name), struct.pack("<I", len(shape)), *(struct.pack("<Q", size) for size in shape[::-1]),
                  struct.pack("<IQ", kind, 0)]
    return b"".join(parts)


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        path = Path(tmp_path / "m.gguf")
        path.write_bytes(content)
        return read_gguf(path)
    return read


def test_names_and_shapes(read):
    header = read(gguf({"blocks.0.weight": (3, 256), "bias": (7,)}))
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {
        "blocks.0.weight": (3, 256), "bias": (7,)}
    assert read(gguf({"a": (2, 3)}, kind=0)).tensors["a"].dtype == "F32"


def test_metadata_is_passed_over_but_for_shapes_that_were_flattened(read):
    entries = b"".join([
        text("general.architecture"), struct.pack("<I", 8), text("flux"),
        text("words"), struct.pack("<IIQ", 9, 8, 2), text("a"), text("b"),
        text("numbers"), struct.pack("<IIQ", 9, 6, 3), bytes(12),
        text("flag"), struct.pack("<I?", 7, True),
        text("comfy.gguf.orig_shape.conv"), struct.pack("<IIQ4i", 9, 5, 4, 8, 4, 3, 3)])
    assert read(gguf({"conv": (288,)}, entries, 5)).tensors["conv"].shape == (8, 4, 3, 3)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "truncated"), (b"GGU", "truncated"), (b"PK\3\4" + bytes(60), "does not start"),
    (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims"), (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "claims"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**62), "longer than"),
    (gguf({"a": (2, 3)})[:-9], "truncated"),
    (gguf({"a": (2**50, 1)}), "impossible size"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<I", 99), "dimensions"),
    (gguf({}, text("x") + struct.pack("<I", 77), 1), "unknown type 77"),
    (gguf({}, text("x") + struct.pack("<IIQ", 9, 9, 1), 1), "unknown type 9"),
    (gguf({}, text("x") + struct.pack("<IIQ", 9, 4, 2**61), 1), "longer than"),
])
def test_a_header_that_lies_is_refused(read, content, reason):
    with pytest.raises(HeaderError, match=reason):
        read(content)
