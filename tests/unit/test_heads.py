"""The search for heads, against searches written out."""

import itertools

import pytest

from pag_core.checks import SettingError
from pag_core.heads import check_rounds, heads_of, hunt, report, text_of_heads, trials
from pag_core.selection import Layer, select

LAYERS = (Layer("d0", {"d": 0}, 2), Layer("m0", {"m": 0}, 4), Layer("u0", {"u": 0}, 1))
HEADS = heads_of(select("all", LAYERS, "m0"))
WORTH = dict(zip(HEADS, (0.3, -0.2, 0.5, 0.1, 0.4, 0.0, -0.1), strict=True))


def counted(score):
    asked = []

    def ask(tried):
        asked.append(tried)
        return score(tried)

    return ask, asked


def added(tried):
    """Two pictures; heads add up, but the two best are worth little together."""
    worth = sum(WORTH[head] for head in tried)
    if {HEADS[2], HEADS[4]} <= set(tried):
        worth -= 0.3
    return worth, worth + 1.0


def test_the_heads_of_a_selection():
    assert [(layer.name, head) for layer, head in heads_of(select("u0,m0:h1+3,d0", LAYERS, "m0"))] == [
        ("d0", 0), ("d0", 1), ("m0", 1), ("m0", 3), ("u0", 0)]


@pytest.mark.parametrize("text", ["m0:h1", "u0", "d0", "d0:h0,m0:h1+3", "all"])
def test_the_text_of_heads_selects_them(text):
    assert text_of_heads(heads_of(select(text, LAYERS, "m0")), LAYERS) == text


def test_one_round_ranks_every_head():
    ask, asked = counted(added)
    (one,) = hunt(HEADS, (), 1, 1, ask)
    assert [trial.head for trial in one.ranked] == sorted(HEADS, key=WORTH.get, reverse=True)
    assert one.taken == (HEADS[2],)
    assert one.base == (0.0, 1.0)
    assert asked == [(), *((head,) for head in HEADS)]
    assert len(asked) == trials(len(HEADS), 1, 1)


@pytest.mark.parametrize(("rounds", "take"), [(3, 1), (2, 2)])
def test_rounds_are_the_greedy_search(rounds, take):
    ask, asked = counted(added)
    done = list(hunt(HEADS, (), rounds, take, ask))
    chosen = ()
    for one in done:
        assert one.chosen == chosen
        left = [head for head in HEADS if head not in chosen]
        best = sorted(left, key=lambda head: added((*chosen, head))[0], reverse=True)[:take]
        best = [head for head in best if added((*chosen, head))[0] > added(chosen)[0]]
        assert one.taken == tuple(best)
        chosen += one.taken
    assert len(done) == rounds
    assert len(asked) == trials(len(HEADS), rounds, take)
    assert len(set(asked)) == len(asked)


def test_greedy_finds_the_best_pair_where_heads_add_up():
    def plain(tried):
        return (sum(WORTH[head] for head in tried),)

    *_, last = hunt(HEADS, (), 2, 1, plain)
    best = max(itertools.combinations(HEADS, 2), key=plain)
    assert set(last.chosen + last.taken) == set(best)


def test_the_first_round_takes_the_best_even_if_none_helps_and_a_later_one_ends_the_search():
    def worse(tried):
        return (-float(len(tried)),)

    done = list(hunt(HEADS, (), 4, 1, worse))
    assert [len(one.taken) for one in done] == [1, 0]


def test_what_was_chosen_before_is_in_every_trial():
    ask, asked = counted(added)
    before = HEADS[:1]
    (one,) = hunt(HEADS[1:], before, 1, 1, ask)
    assert one.chosen == before
    assert all(tried[:1] == before for tried in asked)


def test_a_ranking_alone_takes_nothing():
    (one,) = hunt(HEADS, (), 1, 0, added)
    assert one.taken == ()
    assert len(one.ranked) == len(HEADS)


def test_the_gain_compares_picture_by_picture():
    scores = {(): (0.0, 1.0, 5.0), HEADS[:1]: (0.5, 1.5, 5.5)}
    (one,) = hunt(HEADS[:1], (), 1, 1, scores.__getitem__)
    gain, margin = one.ranked[0].gain(one.base)
    assert (gain, margin) == pytest.approx((0.5, 0.0))


def test_the_report():
    text = report(list(hunt(HEADS, (), 2, 1, added)), LAYERS)
    first, head, best, *_ = text.splitlines()
    assert (first, head.split()) == ("Round 1", ["head", "score", "gain"])
    assert best.split() == ["1.", "m0:h0", "1.0000", "+0.5000", "±", "0.0000", "taken"]
    assert "Round 2, together with m0:h0" in text
    assert text.count("baseline") == 2


def test_more_rounds_than_heads():
    with pytest.raises(SettingError, match="4 rounds with heads_per_round 2 need 8 heads, but layers has only 7"):
        check_rounds(7, 4, 2)
    check_rounds(8, 4, 2)
