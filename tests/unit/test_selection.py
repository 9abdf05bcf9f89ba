"""The layer grammar: what it accepts and refuses, and what holds for every text and every selection."""

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pag_core.selection import Layer, SelectionError, select, text_of

HEADS = 4


def u_net(*groups: tuple[str, str, dict[int, int]]) -> tuple[Layer, ...]:
    """Layers of a U-Net from (letter, the host's kind, {block number: transformer blocks}) as nodes/host names them."""
    layers = []
    for letter, kind, blocks in groups:
        for counted, (number, depth) in enumerate(blocks.items()):
            name = f"{letter}{counted}"
            layers += [Layer(name=name if depth == 1 else f"{name}.{index}", heads=HEADS, addresses={
                letter: counted, f"{name}.": index, f"{kind}.": number, f"{kind}.{number}.": index})
                for index in range(depth)]
    return tuple(layers)


def transformer(double: int, single: int) -> tuple[Layer, ...]:
    """Layers of a transformer with joint ("double") and plain ("single") blocks, counted through and by kind."""
    kinds = [("double", i) for i in range(double)] + [("single", i) for i in range(single)]
    return tuple(Layer(name=f"{kind}.{i}", addresses={f"{kind}.": i, "": through}, heads=HEADS)
                 for through, (kind, i) in enumerate(kinds))


SD = u_net(("d", "input", dict.fromkeys((1, 2, 4, 5, 7, 8), 1)), ("m", "middle", {0: 1}),
           ("u", "output", dict.fromkeys(range(3, 12), 1)))
SDXL = u_net(("d", "input", {4: 2, 5: 2, 7: 10, 8: 10}), ("m", "middle", {0: 10}),
             ("u", "output", {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}))
FLUX = transformer(double=3, single=6)
MODELS = {"SD": (SD, "m0"), "SDXL": (SDXL, "m0"), "Flux": (FLUX, "double.1")}


def names(text: str, model: str = "SD") -> list[str]:
    """What a selection takes, as "layer" or "layer:h1+2"."""
    found = select(text, *MODELS[model])
    return [layer.name if heads is None else f"{layer.name}:h{'+'.join(map(str, sorted(heads)))}"
            for layer, heads in found.items()]


ALL_SD = [layer.name for layer in SD]


@pytest.mark.parametrize(("model", "text", "expected"), [
    ("SD", "auto", ["m0"]),
    ("SD", "all", ALL_SD),
    ("SD", "m0", ["m0"]),
    ("SD", "d0", ["d0"]),
    ("SD", "u8", ["u8"]),
    ("SD", "u3, d1 ,m0", ["d1", "m0", "u3"]),
    ("SD", " m0 ", ["m0"]),
    ("SD", "m0\n,\td0", ["d0", "m0"]),
    ("SD", "m0,m0,auto", ["m0"]),
    ("SD", "d0-3", ["d0", "d1", "d2", "d3"]),
    ("SD", "d2-2", ["d2"]),
    ("SD", "d0-2,d1-3", ["d0", "d1", "d2", "d3"]),
    ("SD", "m0.0", ["m0"]),
    ("SD", "input.1", ["d0"]),
    ("SD", "input.4", ["d2"]),
    ("SD", "input.4-8", ["d2", "d3", "d4", "d5"]),
    ("SD", "input.4.0", ["d2"]),
    ("SD", "middle.0", ["m0"]),
    ("SD", "output.3", ["u0"]),
    ("SD", "all,!u0-8", [*ALL_SD[:7]]),
    ("SD", "!m0,all", [name for name in ALL_SD if name != "m0"]),
    ("SD", "all, ! m0", [name for name in ALL_SD if name != "m0"]),
    ("SD", "auto,d0,!auto", ["d0"]),
    ("SD", "m0:h0", ["m0:h0"]),
    ("SD", "m0:h0+2-3", ["m0:h0+2+3"]),
    ("SD", "m0:h0+h2-3", ["m0:h0+2+3"]),
    ("SD", "m0 : h3+0", ["m0:h0+3"]),
    ("SD", "m0:h0-3", ["m0"]),
    ("SD", "m0:h0-1,m0:h2-3", ["m0"]),
    ("SD", "m0:h0,m0", ["m0"]),
    ("SD", "m0,!m0:h1", ["m0:h0+2+3"]),
    ("SD", "auto:h1", ["m0:h1"]),
    ("SD", "all:h1,!d0-5,!u0-8", ["m0:h1"]),
    ("SD", "d0-1:h2", ["d0:h2", "d1:h2"]),
    ("SDXL", "u0.4", ["u0.4"]),
    ("SDXL", "u0.2-5", ["u0.2", "u0.3", "u0.4", "u0.5"]),
    ("SDXL", "u0", [f"u0.{i}" for i in range(10)]),
    ("SDXL", "m0", [f"m0.{i}" for i in range(10)]),
    ("SDXL", "d0-1", ["d0.0", "d0.1", "d1.0", "d1.1"]),
    ("SDXL", "m0,!m0.1-9", ["m0.0"]),
    ("SDXL", "output.5.1", ["u5.1"]),
    ("SDXL", "m0.3:h1", ["m0.3:h1"]),
    ("Flux", "auto", ["double.1"]),
    ("Flux", "4", ["single.1"]),
    ("Flux", "4-8", ["single.1", "single.2", "single.3", "single.4", "single.5"]),
    ("Flux", "0", ["double.0"]),
    ("Flux", "double.2", ["double.2"]),
    ("Flux", "single.1-3", ["single.1", "single.2", "single.3"]),
    ("Flux", "all,!single.0-5", ["double.0", "double.1", "double.2"]),
])
def test_grammar_accepts(model, text, expected):
    assert names(text, model) == expected


@pytest.mark.parametrize(("model", "text", "expected"), [
    ("SD", "mid", ["m0"]),
    ("SD", "middle", ["m0"]),
    ("SD", "mid_block", ["m0"]),
    ("SD", "middle_block.1", ["m0"]),
    ("SD", "mid_block.attentions.0", ["m0"]),
    ("SD", "mid_block.attentions.0.transformer_blocks.0.attn1", ["m0"]),
    ("SDXL", "mid_block.attentions.0.transformer_blocks.7", ["m0.7"]),
    ("SDXL", "middle_block.1.transformer_blocks.7.attn1", ["m0.7"]),
    ("SD", "input_blocks.8.1", ["d5"]),
    ("SD", "output_blocks.3", ["u0"]),
    ("SDXL", "input_blocks.8.1.transformer_blocks.2.attn1", ["d3.2"]),
    ("SDXL", "output_blocks.0.1.transformer_blocks.2.attn1:h1", ["u0.2:h1"]),
])
def test_names_of_the_paper_and_of_other_tools_are_understood(model, text, expected):
    assert names(text, model) == expected


@pytest.mark.parametrize(("text", "quoted"), [
    ("", "empty term"),
    ("   ", "empty term"),
    (",", "empty term"),
    ("m0,", "empty term"),
    ("m0,,d0", "empty term"),
    ("!", "empty term"),
    ("m0,!", "empty term"),
    ("d6", "'d6'"),
    ("m1", "'m1'"),
    ("u9", "'u9'"),
    ("d4-6", "'d6'"),
    ("d9-12", "'d9'"),
    ("u0.1", "'u0.1'"),
    ("input.0", "'input.0'"),
    ("input.3", "'input.3'"),
    ("input.3-5", "'input.3'"),
    ("middle.1", "'middle.1'"),
    ("0", "'0'"),
    ("double.0", "'double.0'"),
    ("x0", "'x0'"),
    ("d3-1", "write d1-3"),
    ("d", "'d'"),
    ("d-1", "'d-1'"),
    ("d0-", "'d0-'"),
    ("d0-u3", "'d0-u3'"),
    ("d0 - 3", "'d0 - 3'"),
    ("d0-1-2", "'d0-1-2'"),
    ("d0.", "'d0.'"),
    ("d 0", "'d 0'"),
    ("M0", "'M0'"),
    ("ALL", "'ALL'"),
    ("m0;d0", "'m0;d0'"),
    ("m0 d0", "'m0 d0'"),
    ("!!m0", "'!!m0'"),
    ("m0!", "'m0!'"),
    ("all-3", "'all-3'"),
    ("m٠", "'m٠'"),
    ("!m0", "excludes nothing"),
    ("d0,!u0", "excludes nothing"),
    ("m0:h0,!m0:h1", "excludes nothing"),
    ("m0,!m0", "leaves nothing"),
    ("all,!all", "leaves nothing"),
    ("m0:h1,!m0:h0-2", "leaves nothing"),
    ("m0:", "heads in 'm0:'"),
    ("m0:0", "heads in 'm0:0'"),
    ("m0:h", "heads in 'm0:h'"),
    ("m0:h0,h1", "'h1'"),
    ("m0:h0+", "heads in 'm0:h0+'"),
    ("m0:+h0", "heads in 'm0:+h0'"),
    ("m0:h0:h1", "heads in 'm0:h0:h1'"),
    ("m0:h-1", "heads in 'm0:h-1'"),
    ("m0:h٠", "heads in 'm0:h٠'"),
    ("m0:h4", "h0 to h3"),
    ("m0:h2-4", "h0 to h3"),
    ("m0:h3-1", "'m0:h3-1'"),
    ("__import__('os')", "__import__"),
    ("m0" * 4001, "the limit is 8000"),
])
def test_everything_else_is_refused_and_quoted(text, quoted):
    with pytest.raises(SelectionError) as error:
        select(text, SD, "m0")
    assert quoted in str(error.value)


@pytest.mark.parametrize("text", ["", "d6", "nonsense", "m0,!m0", "u0.1"])
def test_refusal_lists_what_the_model_has(text):
    with pytest.raises(SelectionError, match=r"This model has: d0-5, m0, u0-8; also all, auto\."):
        select(text, SD, "m0")


@pytest.mark.parametrize(("model", "listed"), [
    ("SDXL", "d0.0-1, d1.0-1, d2.0-9, d3.0-9, m0.0-9, u0.0-9, u1.0-9, u2.0-9, u3.0-1, u4.0-1, u5.0-1"),
    ("Flux", "double.0-2, single.0-5"),
])
def test_list_of_what_the_model_has_folds_ranges(model, listed):
    with pytest.raises(SelectionError) as error:
        names("nonsense", model)
    assert f"This model has: {listed}; also all, auto." in str(error.value)


@pytest.mark.parametrize("value", [None, 3, ["m0"], b"m0", 0.5])
def test_anything_but_text_is_refused(value):
    with pytest.raises(SelectionError, match="layers must be text"):
        select(value, SD, "m0")


@pytest.mark.parametrize("text", ["0" * 4301, "d" + "1" * 5000, "d0-" + "9" * 4400, "m0:h" + "0" * 4301])
def test_a_number_too_long_for_an_integer_is_refused(text):
    with pytest.raises(SelectionError, match="cannot read"):
        select(text, SD, "m0")


def test_selection_error_is_a_value_error():
    assert issubclass(SelectionError, ValueError)


def test_auto_may_stand_for_any_selection():
    found = select("auto,!u0:h1", SD, "u0:h0-1,d0")
    assert {layer.name: heads for layer, heads in found.items()} == {"d0": None, "u0": frozenset({0})}


# --- what holds for every text -----------------------------------------------------------------------------------

quick = settings(max_examples=40, deadline=None)
models = st.sampled_from(sorted(MODELS))
numbers = st.integers(0, 12).map(str)
pieces = numbers | st.sampled_from(["d", "m", "u", "input.", "middle.", "output.", "double.", "single.", "all", "auto",
                                    "mid", "!", ":", "h", "+", "-", ".", ",", " ", "_"])
any_text = st.text(max_size=40) | st.lists(pieces, max_size=14).map("".join)


@settings(max_examples=150, deadline=None)
@given(model=models, text=any_text)
def test_any_text_gives_a_selection_error_or_a_nonempty_valid_selection(model, text):
    layers, auto = MODELS[model]
    try:
        found = select(text, layers, auto)
    except SelectionError:
        return
    assert found
    assert list(found) == [layer for layer in layers if layer in found], "not in the model's order"
    for layer, heads in found.items():
        assert heads is None or (heads and heads < frozenset(range(layer.heads))), "neither all heads nor some of them"


# --- what holds for every selection --------------------------------------------------------------------------------

Selection = dict[Layer, frozenset[int] | None]


def written(selection: Selection) -> list[str]:
    """One term per layer."""
    return [layer.name if heads is None else f"{layer.name}:h{'+'.join(map(str, sorted(heads)))}"
            for layer, heads in selection.items()]


@st.composite
def selections(draw) -> tuple[str, Selection]:
    """A model and some of its layers, in its order, each with all or some of its heads."""
    model = draw(models)
    layers = MODELS[model][0]
    chosen = draw(st.sets(st.sampled_from(range(len(layers))), min_size=1, max_size=8))
    some_heads = st.none() | st.frozensets(st.integers(0, HEADS - 1), min_size=1, max_size=HEADS - 1)
    return model, {layers[i]: draw(some_heads) for i in sorted(chosen)}


@quick
@given(selections())
def test_a_selection_that_is_written_out_reads_back_the_same(case):
    model, selection = case
    assert select(",".join(written(selection)), *MODELS[model]) == selection


@quick
@given(selections())
def test_the_shortest_text_of_a_selection_reads_back_the_same(case):
    model, selection = case
    layers, auto = MODELS[model]
    text = text_of(selection, layers)
    assert select(text, layers, auto) == selection
    assert len(text) <= len(",".join(written(selection)))


@quick
@given(model=models, text=any_text)
def test_the_text_of_what_any_text_selects_selects_the_same(model, text):
    layers, auto = MODELS[model]
    try:
        selection = select(text, layers, auto)
    except SelectionError:
        return
    assert select(text_of(selection, layers), layers, auto) == selection


@pytest.mark.parametrize(("model", "text", "expected"), [
    ("SD", "m0", "m0"),
    ("SD", "auto", "m0"),
    ("SD", "u1,u0,u2", "u0-2"),
    ("SD", "m0,d5,d4,u7", "d4-5,m0,u7"),
    ("SD", "d0-5,m0,u0-8", "all"),
    ("SD", "d0-5,m0,u0-4,u6-8", "all,!u5"),
    ("SD", "all,!m0:h1-2", "all,!m0:h1-2"),
    ("SD", "all:h0", "d0-5:h0,m0:h0,u0-8:h0"),
    ("SD", "m0:h3+2+0", "m0:h0+2-3"),
    ("SDXL", "u0", "u0"),
    ("SDXL", "u0,u1,u2.0-4", "u0-1,u2.0-4"),
    ("SDXL", "u0.1-9,m0", "m0,u0.1-9"),
    ("Flux", "0-2", "double.0-2"),
    ("Flux", "double.2,single.0-1", "double.2,single.0-1"),
    ("Flux", "all,!single.3", "all,!single.3"),
])
def test_text_is_folded_and_in_the_models_order(model, text, expected):
    layers, auto = MODELS[model]
    assert text_of(select(text, layers, auto), layers) == expected


@pytest.mark.parametrize("model", MODELS)
def test_the_longest_texts_are_still_read(model):
    """Every other head of each layer, so that no range is one; and of its neighbours the others, so that none join."""
    layers, auto = MODELS[model]
    big = tuple(replace(layer, heads=48) for layer in layers)
    selection = {layer: frozenset(range(i % 2, 48, 2)) for i, layer in enumerate(big)}
    assert select(text_of(selection, big), big, auto) == selection


def test_nothing_selected_has_no_text():
    with pytest.raises(SelectionError, match=r"nothing is selected.*This model has: d0-5"):
        text_of({}, SD)


@quick
@given(selections(), st.randoms())
def test_order_repetition_and_white_space_of_the_terms_do_not_matter(case, shuffler: random.Random):
    model, selection = case
    terms = written(selection)
    mixed = [f" {term}\t" for term in terms + terms[:2]]
    shuffler.shuffle(mixed)
    assert select(",".join(mixed), *MODELS[model]) == selection


@quick
@given(selections(), st.randoms())
def test_an_exclusion_takes_out_exactly_its_heads_wherever_it_stands(case, shuffler: random.Random):
    model, selection = case
    every = {layer: frozenset(range(HEADS)) for layer in MODELS[model][0]}
    left = {layer: heads - (selection.get(layer, frozenset()) or every[layer]) if layer in selection else heads
            for layer, heads in every.items()}
    terms = ["all", *(f"!{term}" for term in written(selection))]
    shuffler.shuffle(terms)
    text = ",".join(terms)
    if not any(left.values()):
        with pytest.raises(SelectionError, match="leaves nothing"):
            select(text, *MODELS[model])
        return
    assert select(text, *MODELS[model]) == {
        layer: None if len(heads) == HEADS else heads for layer, heads in left.items() if heads}


@quick
@given(st.sampled_from([("SD", "d", 6), ("SD", "u", 9), ("SDXL", "u0.", 10), ("Flux", "", 9), ("Flux", "single.", 6)]),
       st.data())
def test_a_range_is_the_sum_of_its_members(case, data):
    model, prefix, count = case
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    singles = ",".join(f"{prefix}{number}" for number in range(first, last + 1))
    assert select(f"{prefix}{first}-{last}", *MODELS[model]) == select(singles, *MODELS[model])


@quick
@given(st.sampled_from([("SD", "d", 6), ("SD", "u", 9), ("SDXL", "u0.", 10), ("Flux", "", 9)]), st.data())
def test_a_range_with_an_end_that_is_not_there_is_refused(case, data):
    model, prefix, count = case
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(count, count + 50))
    with pytest.raises(SelectionError, match=f"'{prefix}{last}'"):
        select(f"{prefix}{first}-{last}", *MODELS[model])


@pytest.mark.parametrize(("written", "meant"), [
    ("D0", "d0"), ("m0 u1", "m0,u1"), ("d0;m0", "d0,m0"), ("d0-d3", "d0-3"), ("d0 - 3", "d0-3"),
    ("m0\uff0cu1", "m0,u1"), ("layer m0", "m0"),
    ("d0\u20133", "d0-3"), ("all -u1", "all,!u1"), ("all not u1", "all,!u1"), ("M0:H0+2", "m0:h0+2"),
    ("d0 to d2", "d0-2"), ("m0 and u1", "m0,u1"), ("AUTO", "auto"), ("'m0'", "m0"), ("d0|m0/u1", "d0,m0,u1"),
])
def test_an_error_says_what_to_type(written, meant):
    layers = tuple(Layer(f"{kind}{index}", {kind: index}, 8) for kind in "dmu" for index in range(4))
    with pytest.raises(SelectionError, match=f"write {re.escape(meant)}\\."):
        select(written, layers, "m0")
    assert select(meant, layers, "m0")


@pytest.mark.parametrize("written", ["d9", "x3", "d0 x3", "?", "m0:h9", "d3-0", "d0 " * 90, "a" * 5000, "-" * 5000,
                                     " ;" * 3000])
def test_nothing_is_guessed_that_this_model_does_not_have(written):
    layers = tuple(Layer(f"{kind}{index}", {kind: index}, 8) for kind in "dmu" for index in range(4))
    with pytest.raises(SelectionError) as caught:
        select(written, layers, "m0")
    assert "write d" not in str(caught.value).replace("write d0-3", "")
