"""Random numbers that are drawn where they must not count."""

import random

import numpy as np
import torch
from pag_pack.nodes.host.hooks.chance import draw_again, numbers, other_numbers


def drawn() -> tuple:
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()


def test_inside_others_are_drawn_and_afterwards_they_stand_where_they_stood():
    stand = numbers()
    expected = drawn()
    draw_again(stand)
    for _ in range(2):
        with other_numbers([]):
            assert all(one != other for one, other in zip(drawn(), expected, strict=True))
    assert drawn() == expected


def test_an_error_inside_changes_nothing_of_that():
    stand = numbers()
    expected = drawn()
    draw_again(stand)
    try:
        with other_numbers([]):
            drawn()
            raise KeyError
    except KeyError:
        pass
    assert drawn() == expected


def test_no_device_is_seeded_but_those_that_are_named():
    """Without a GPU torch would keep the seed for one that comes later, in each step of each run."""
    calls = len(torch.cuda._queued_calls)
    with other_numbers([]):
        drawn()
    assert len(torch.cuda._queued_calls) == calls
