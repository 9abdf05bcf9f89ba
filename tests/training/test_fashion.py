"""Fashion-MNIST's files as their authors publish them."""

import gzip

import pytest
from harness.errors import HarnessError
from training import fashion


def idx(*dims: int, data: bytes) -> bytes:
    return b"\0\0\x08" + bytes([len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims) + data


@pytest.fixture
def data(tmp_path):
    images = idx(4, 28, 28, data=bytes(i % 251 for i in range(4 * 28 * 28)))
    for name, content in (("images-idx3", images), ("labels-idx1", idx(4, data=bytes([0, 3, 9, 1])))):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path


def test_missing_data_comes_with_the_remedy(tmp_path):
    with pytest.raises(HarnessError, match="apt install dataset-fashion-mnist"):
        fashion.read_data(tmp_path)


def test_a_truncated_data_file_is_named(data):
    path = data / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(HarnessError, match=r"train-images-idx3.* is no complete IDX file"):
        fashion.read_data(data)


def test_images_are_padded_and_labelled(data):
    images, labels = fashion.read_data(data)
    assert images.shape == (4, 32, 32)
    assert images[:, :2].count_nonzero() == 0
    assert labels.tolist() == [0, 3, 9, 1]
