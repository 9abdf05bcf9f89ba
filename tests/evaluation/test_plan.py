"""The plan's configurations, and the files that samples are kept in."""

import pytest
import torch
from evaluation.config import Config, pag
from evaluation.plan import Found, quick, tables
from evaluation.store import Store

from pag_core.perturbation import KINDS


def test_every_claim_is_about_rows_of_its_table():
    for table in [*tables(Found()), *quick(tables(Found()))]:
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        assert {name for check in table.checks for name in (check.better, check.worse)} <= set(names)


@pytest.mark.parametrize(("share", "start"), [(0.3, "40%"), (0.65, "40%"), (0.8, "52%"), (1.0, "60%")])
def test_the_schedule_costs_no_more_than_cfg(share, start):
    (table,) = (table for table in tables(Found(), share) if table.key == "fig44")
    assert f"CFG to 60%, PAG from {start}" in [row.name for row in table.rows]


def test_every_operation_and_rule_has_a_row():
    rows = [dict(row.config.options) for table in tables(Found()) for row in table.rows]
    assert {options.get("perturbation", "identity") for options in rows} == set(KINDS)
    for name in ("random_share", "early_damping", "momentum", "coarse_scale", "tangential_scale", "rescale"):
        assert any(name in options for options in rows), name
    assert any(options.get("row") == "negative" for options in rows)


def test_scale_zero_is_no_guidance_whatever_else_is_set():
    assert pag(0, "u2-3", strength=0.5) == Config()
    assert pag(0, "m0").key == Config().key


def test_configurations_that_differ_have_keys_that_differ(every_config):
    assert len({config.key for config in every_config}) == len(every_config)
    assert Config(scale=1, layers="m0").key == Config(scale=1.0, layers="m0").key


def test_labels_go_round():
    assert [Config(True).label(i, 10) for i in (0, 9, 10, 1_000_003)] == [0, 9, 0, 3]
    assert Config().label(5, 10) == -1


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_samples_come_back_in_the_order_asked_for(store):
    pictures = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    store.add(Config(), [4, 5, 9], pictures[:3], flops=1e9)
    store.add(Config(), [0, 1, 2], pictures[3:])
    assert store.ids(Config()) == {0, 1, 2, 4, 5, 9}
    assert store.load(Config(), [9, 0])[:, 0, 0, 0].tolist() == [2, 3]
    assert store.flops(Config()) == 1e9
    assert store.ids(Config(True)) == set()
    with pytest.raises(KeyError):
        store.load(Config(), [3])


def test_a_file_that_was_not_finished_does_not_count(store, monkeypatch):
    def full_disk(tensors, path, facts):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("evaluation.store.save_file", full_disk)
    with pytest.raises(OSError, match="disk full"):
        store.add(Config(), [0], torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert store.ids(Config()) == set()
    assert list(store.folder.rglob("*.*")) == []
