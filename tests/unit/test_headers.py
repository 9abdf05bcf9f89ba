"""Reading a safetensors header: what a real file says, and every way in which a file can lie."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from pag_core import headers
from pag_core.headers import HeaderError, TensorInfo, read_header

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


@pytest.mark.parametrize(("header", "quoted"), [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"a": 1e99999, "a": ' + b"9" * 5000 + b"}", "not JSON"),
    ([], "JSON list"),
    ("a", "JSON str"),
    ({"a": 3}, "'a' has no dtype"),
    ({"a": {**HALF, "dtype": 16}}, "'a' has no dtype"),
    ({"a": {"dtype": "F16", "shape": [2, 3]}}, "'a' has no dtype"),
    ({"a": {**HALF, "shape": "23"}}, "'a' has no dtype"),
    ({"a": {**HALF, "shape": [2, -3]}}, "right types"),
    ({"a": {**HALF, "shape": [2, 3.0]}}, "right types"),
    ({"a": {**HALF, "shape": [2, True]}}, "right types"),
    ({"a": {**HALF, "shape": [0, 2**63]}}, "right types"),
    ({"a": {**HALF, "shape": [1] * 9}}, "do not fit its shape"),
    ({"a": {**HALF, "data_offsets": [0, 12, 24]}}, "do not fit its shape"),
    ({"a": {**HALF, "data_offsets": [12, 0]}}, "do not fit its shape"),
    ({"a": {**HALF, "shape": [2, 4]}}, "do not fit its shape"),
    ({"a": {**HALF, "dtype": "F17"}}, "unknown type 'F17'"),
    ({"a": {**HALF, "data_offsets": [4, 16]}}, "starts at byte 4"),
    ({"a": HALF, "b": HALF}, "starts at byte 0 of the data, expected 12"),
    ({"a" * 10_000: 3}, "aaa...'"),
    ({"a": HALF, "__metadata__": {"x": 1}}, "__metadata__"),
    ({"a": HALF, "__metadata__": []}, "__metadata__"),
    ({"a": HALF, "b": {"dtype": "F16", "shape": [4], "data_offsets": [12, 20]}}, "need 20 bytes of data, but it has"),
    ({}, "need 0 bytes of data, but it has 12"),
])
def test_a_header_that_is_wrong_is_refused(file, header, quoted):
    with pytest.raises(HeaderError) as caught:
        read_header(file(header))
    assert quoted in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("length", "quoted"), [
    (headers.MAX_BYTES + 1, "more than the 100000000"), (2**64 - 1, "more than"), (1000, "it is cut off")])
def test_a_length_that_is_wrong_is_refused_before_it_is_read(file, length, quoted):
    with pytest.raises(HeaderError, match=quoted):
        read_header(file({"a": HALF}, length=length))


def test_too_many_tensors_are_refused(file):
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(HeaderError, match="20001 tensors"):
        read_header(file({f"a{i}": empty for i in range(20_001)}, data=0))


@pytest.mark.parametrize("content", [b"", b"\x02", bytes(7)])
def test_a_file_that_is_too_short_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(HeaderError, match="too few"):
        read_header(tmp_path / "f")


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
