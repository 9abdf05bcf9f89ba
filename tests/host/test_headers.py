"""Reading a safetensors header: what a real file says, and every way in which a file can lie."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pag_pack.nodes.host.editor.headers import MAX_BYTES, HeaderError, TensorInfo, read_header
from safetensors.torch import save, save_file

HALF = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


@pytest.fixture
def file(tmp_path):
    """(header, bytes of data, claimed length of the header) -> path of such a file."""
    def write(header: object, data: int = 12, length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
        return path
    return write


def test_what_the_library_writes(tmp_path):
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(()), "c": torch.zeros(0, 7),
               "d": torch.zeros(5, dtype=torch.float8_e4m3fn)}
    save_file(tensors, tmp_path / "f.safetensors", {"pag_layers": "u2"})
    header = read_header(tmp_path / "f.safetensors")
    assert header.tensors == {"a": TensorInfo("BF16", (2, 3)), "b": TensorInfo("F32", ()),
                              "c": TensorInfo("F32", (0, 7)), "d": TensorInfo("F8_E4M3", (5,))}
    assert header.metadata == {"pag_layers": "u2"}


def test_no_tensor_is_read(file, monkeypatch):
    path = file({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}, data=0)
    with path.open("r+b") as sparse:
        sparse.truncate(path.stat().st_size + 2**40)
    assert read_header(path).tensors["a"].shape == (2**40,)


@pytest.mark.parametrize("header", [
    b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1e99999, "a": ' + b"9" * 5000 + b"}", [], "a", {},
    {"a": 3},
    {"a": {**HALF, "dtype": 16}},
    {"a": {**HALF, "dtype": "F17"}},
    {"a": {"dtype": "F16", "shape": [2, 3]}},
    *({"a": {**HALF, "shape": shape}} for shape in ("23", [2, -3], [2, 3.0], [2, True], [0, 2**63], [2, 4])),
    *({"a": {**HALF, "data_offsets": offsets}} for offsets in ([0, 12, 24], [12, 0], [4, 16])),
    {"a": HALF, "b": HALF},
    {"a": HALF, "b": {"dtype": "F16", "shape": [4], "data_offsets": [12, 20]}},
    {"a" * 10_000: 3},
    {"a": HALF, "__metadata__": {"x": 1}},
    {"a": HALF, "__metadata__": []},
])
def test_a_header_that_is_wrong_is_refused(file, header):
    with pytest.raises(HeaderError, match="damaged") as caught:
        read_header(file(header))
    assert len(str(caught.value)) < 320


@pytest.mark.parametrize("length", [1000, MAX_BYTES, MAX_BYTES + 1, 2**64 - 1])
def test_a_length_that_is_wrong_is_refused(file, length):
    with pytest.raises(HeaderError, match=f"claims {length} bytes" if length > MAX_BYTES else "length"):
        read_header(file({"a": HALF}, length=length))


@pytest.mark.parametrize("content", [b"", b"\x02", bytes(7)])
def test_a_file_that_is_too_short_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(HeaderError, match="too small"):
        read_header(tmp_path / "f")


def test_a_file_that_is_not_there_is_an_error_without_its_place(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        read_header(tmp_path / "f")
    assert str(tmp_path) not in caught.value.strerror


WHOLE = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, {"k": "v"})


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), replaced=st.integers(0, 8), new=st.binary(max_size=8))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, place, replaced, new):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(WHOLE[:place] + new + WHOLE[place + replaced:])
    try:
        header = read_header(path)
    except HeaderError:
        return
    assert all(isinstance(name, str) for name in header.tensors)
