"""The layer grammar: which self-attention layers of a model are perturbed.

    selection = term {"," term}
    term      = ["!"] address [":" heads]        "!" takes the layers out again
    address   = "all" | "auto" | name | name "-" number      a name ends in a number; a range runs over that number
    heads     = "h" number ["-" number] {"+" ["h"] number ["-" number]}

Every index counts from 0. `u0.2-5` are the transformer blocks 2 to 5 of `u0`, `d0-3` the blocks d0 to d3, `4-8` the
layers 4 to 8 of a transformer, `m0:h0+2-3` the heads 0, 2 and 3 of `m0`. The order of the terms does not matter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class SelectionError(ValueError):
    """A selection that does not match the model; the message quotes the term and lists the model's layers."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One self-attention layer, as named by the grammar.

    Attributes:
        name: the canonical name, for example "u0.2" or "double.3".
        addresses: everything it answers to, as {prefix: number}; the name "u0.2" is the number 2 behind the prefix
            "u0.", and "u0" the number 0 behind "u".
        heads: number of attention heads.
    """

    name: str
    addresses: Mapping[str, int]
    heads: int

    @property
    def aliases(self) -> list[str]:
        """Its names besides `name`."""
        return [name for prefix, number in self.addresses.items() if (name := f"{prefix}{number}") != self.name]


# Names that other tools use for the same layers: the paper's released code, diffusers' SD pipelines, and plain words.
_ALIASES = (
    (r"mid(?:dle)?(?:_block)?", "m0"),
    (r"mid_block\.attentions\.0", "m0"),
    (r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)(?:\.attn1)?", r"m0.\1"),
    (r"middle_block\.1", "m0"),
    (r"middle_block\.1\.transformer_blocks\.(\d+)(?:\.attn1)?", r"m0.\1"),
    (r"(?:transformer_)?blocks\.(\d+)", r"\1"),
    (r"(?:transformer_)?blocks\.(\d+)\.audio_attn1", r"audio.\1"),
    (r"single_transformer_blocks\.(\d+)", r"single.\1"),
    (r"(in|out)put_blocks\.(\d+)(?:\.1)?", r"\1put.\2"),
    (r"(in|out)put_blocks\.(\d+)\.1\.transformer_blocks\.(\d+)(?:\.attn1)?", r"\1put.\2.\3"),
)
# A number is of 100 digits at most, for of a few thousand Python makes no integer.
_ADDRESS = r"((?:[a-z][a-z_]*\.?)?(?:\d+\.)*)(\d{1,100})(?:-(\d{1,100}))?"
_HEADS = r"h?(\d{1,100})(?:-(\d{1,100}))?"
_MAX_MEANT = 200  # characters of a term that is guessed at
_MAX_LENGTH = 8000  # characters; the longest that `text_of` writes stay below, and an error message has to quote it


def select(text: str, layers: tuple[Layer, ...], auto: str) -> dict[Layer, frozenset[int] | None]:
    """Resolve a selection against a model's layers.

    Args:
        text: the selection.
        layers: all self-attention layers of the model, in the order in which it runs them.
        auto: what the term "auto" stands for on this model, itself a selection without "auto".

    Returns:
        {layer: heads} in the model's order; heads is None where all heads are perturbed. Never empty.

    Raises:
        SelectionError: for anything that is not in the grammar, not in this model, or selects nothing.
    """
    if not isinstance(text, str):
        raise SelectionError(f"layers must be text, got {text!r}. {_available(layers)}")
    check_length(text)
    chosen: dict[Layer, frozenset[int]] = {}
    excluded: list[tuple[str, dict[Layer, frozenset[int]]]] = []
    for term in map(str.strip, text.split(",")):
        try:
            found = _term(term, layers, auto)
        except SelectionError:
            if plain := meant(term, layers, auto):
                raise SelectionError(f"layers: cannot read {term!r}; write {plain}. {_available(layers)}") from None
            raise
        if term.startswith("!"):
            excluded.append((term, found))
        else:
            for layer, heads in found.items():
                chosen[layer] = chosen.get(layer, frozenset()) | heads
    # Exclusions come last whatever their place, so that the order of the terms never matters.
    remaining = dict(chosen)
    for term, found in excluded:
        if not any(heads & chosen.get(layer, frozenset()) for layer, heads in found.items()):
            raise SelectionError(f"layers: {term!r} excludes nothing, because no other term selects it. Write, for "
                                 f"example, all,{term}.")
        for layer, heads in found.items():
            remaining[layer] = remaining.get(layer, frozenset()) - heads
    resolved = {layer: None if len(remaining[layer]) == layer.heads else remaining[layer]
                for layer in layers if remaining.get(layer)}
    if not resolved:
        raise SelectionError(f"layers {text!r} leaves nothing selected. {_available(layers)}")
    return resolved


def check_length(text: str) -> None:
    """Raise SelectionError for a text that is too long to be quoted in an error message."""
    if len(text) > _MAX_LENGTH:
        raise SelectionError(f"layers has {len(text)} characters; the limit is {_MAX_LENGTH}.")


# What people write in place of the grammar's signs.
_HABITS = (
    (r"[\"'`()\[\]{}]|\b(?:layers?|blocks?)\b[\s.=]*", " "),
    (r"\s*(?:\u2013|\u2014|\u2212|~|\.\.+|\bto\b|\s-\s)\s*", "-"),  # dashes of every length, "to", dots
    (r"\b([a-z][a-z_.]*|(?:[a-z]+\d+\.))(\d+)-\1(\d+)", r"\1\2-\3"),  # d0-d3
    (r"(^|[\s,;|/&]|\band\b)\s*(?:not\s+|without\s+|-)(?=[a-z])", r"\1!"),
    (r"\s*(?:[;|/&,]|\band\b)[\s;|/&,]*", ","),
    (r"\s*:\s*", ":"),
    (r"!\s+", "!"),
    (r"\s+", ","),
)


def meant(term: str, layers: tuple[Layer, ...], auto: str) -> str | None:
    """What a term that cannot be read was probably meant to be, if that is a valid selection; else None."""
    if len(term) > _MAX_MEANT:
        return None
    text = unicodedata.normalize("NFKC", term).lower().strip()  # of full-width signs the plain ones
    for pattern, replacement in _HABITS:
        text = re.sub(pattern, replacement, text.strip())
    text = text.strip(",")
    try:
        for part in text.split(","):
            _term(part, layers, auto)
    except SelectionError:
        return None
    return text if text != term else None


def _term(term: str, layers: tuple[Layer, ...], auto: str) -> dict[Layer, frozenset[int]]:
    """One term, ignoring its "!": the layers it names, each with its heads."""
    if not term or term == "!":
        raise SelectionError(f"layers has an empty term. Write, for example, {auto!r}. {_available(layers)}")
    address, colon, heads = term.removeprefix("!").strip().partition(":")
    address = address.strip()
    if address == "auto":
        found = {layer: heads or frozenset(range(layer.heads)) for layer, heads in select(auto, layers, auto).items()}
    else:
        found = {layer: frozenset(range(layer.heads)) for layer in _addressed(address, term, layers)}
    if not colon:
        return found
    return {layer: _heads(heads, term, layer) for layer in found}


def _addressed(address: str, term: str, layers: tuple[Layer, ...]) -> list[Layer]:
    if address == "all":
        return list(layers)
    for pattern, replacement in _ALIASES:
        if match := re.fullmatch(pattern, address, re.ASCII):
            address = match.expand(replacement)
            break
    match = re.fullmatch(_ADDRESS, address, re.ASCII)
    if not match:
        raise SelectionError(f"layers: cannot read {term!r}. {_available(layers)}")
    prefix, first, last = match[1], int(match[2]), int(match[3] or match[2])
    if last < first:
        raise SelectionError(f"layers: the range in {term!r} runs backwards; write {prefix}{last}-{first}.")
    found = [layer for layer in layers if first <= layer.addresses.get(prefix, -1) <= last]
    # Both ends have to exist: "d0-9" on a model with d0 to d5 is a mistake, not a wish.
    present = {layer.addresses[prefix] for layer in found}
    if first not in present or last not in present:
        missing = f"{prefix}{first if first not in present else last}"
        raise SelectionError(f"layers: this model has no self-attention layer {missing!r} (from {term!r}). "
                             f"{_available(layers)}")
    return found


def _heads(text: str, term: str, layer: Layer) -> frozenset[int]:
    heads: set[int] = set()
    parts = text.strip().split("+")
    for position, part in enumerate(parts):
        match = re.fullmatch(_HEADS, part.strip(), re.ASCII)
        if not match or (position == 0 and not part.strip().startswith("h")):
            raise SelectionError(f"layers: cannot read the heads in {term!r}; write, for example, {layer.name}:h0 or "
                                 f"{layer.name}:h0+2-3.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= layer.heads:
            asked = f"h{first}" if first == last else f"h{first} to h{last}"
            raise SelectionError(f"layers: {term!r} asks for {asked}, but {layer.name} has {layer.heads} heads, "
                                 f"h0 to h{layer.heads - 1}.")
        heads.update(range(first, last + 1))
    return frozenset(heads)


def text_of(selection: Mapping[Layer, frozenset[int] | None], layers: tuple[Layer, ...]) -> str:
    """The shortest plain text for a selection, the inverse of `select`: runs of neighbours folded into ranges, what
    holds for most layers written as `all` without the others.

    Args:
        selection: {layer: heads}, heads as `select` returns them.
        layers: all self-attention layers of the model, in the order in which it runs them.

    Raises:
        SelectionError: where nothing is selected, for which the grammar has no text.
    """
    if not selection:
        raise SelectionError(f"layers: nothing is selected; choose at least one. {_available(layers)}")
    partly = {layer: heads for layer, heads in selection.items() if heads is not None}
    others = {layer: frozenset(range(layer.heads)) - partly[layer] if layer in partly else None
              for layer in layers if layer in partly or layer not in selection}
    without = ["all", *(f"!{term}" for term in _terms(others, layers))]
    return min(",".join(_terms(selection, layers)), ",".join(without), key=len)


def _terms(selection: Mapping[Layer, frozenset[int] | None], layers: tuple[Layer, ...]) -> list[str]:
    """Terms that add up to a selection, by the first layer of each."""
    terms: list[tuple[int, str]] = []
    for heads in set(selection.values()):
        left = [layer for layer in layers if layer in selection and selection[layer] == heads]
        suffix = "" if heads is None else f":{heads_text(heads)}"
        # Whole blocks of a U-Net first, then what remains of others.
        for address_of in (_block_address, _own_address):
            members = {}
            for layer in layers:
                members.setdefault(address_of(layer), set()).add(layer)
            whole = [address for address, inside in members.items() if address and inside <= set(left)]
            for prefix, first, last in _runs(whole):
                found = [layer for number in range(first, last + 1) for layer in members[prefix, number]]
                terms.append((min(map(layers.index, found)), f"{_range(prefix, first, last)}{suffix}"))
                left = [layer for layer in left if layer not in found]
    return [term for _, term in sorted(terms)]


def heads_text(heads: frozenset[int]) -> str:
    """Heads as the grammar writes them: h0+2-3."""
    return "h" + "+".join(_range("", first, last) for _, first, last in _runs(("", head) for head in sorted(heads)))


def _own_address(layer: Layer) -> tuple[str, int]:
    """A layer's name as (prefix, number), everything up to the final number and that number."""
    prefix, number = re.findall(r"^(.*?)(\d+)$", layer.name)[0]
    return prefix, int(number)


def _block_address(layer: Layer) -> tuple[str, int] | None:
    """The block of a U-Net that a layer lies in, ("u", 0) for "u0" and "u0.2"; None for transformers."""
    match = re.fullmatch(r"([a-z]+)(\d+)(?:\.\d+)?", layer.name)
    return (match[1], int(match[2])) if match else None


def _runs(addresses: Iterable[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Neighbours of one prefix as (prefix, first, last)."""
    runs: list[tuple[str, int, int]] = []
    for prefix, number in addresses:
        if runs and runs[-1][0] == prefix and runs[-1][2] == number - 1:
            runs[-1] = (prefix, runs[-1][1], number)
        else:
            runs.append((prefix, number, number))
    return runs


def _range(prefix: str, first: int, last: int) -> str:
    return f"{prefix}{first}" if first == last else f"{prefix}{first}-{last}"


def _available(layers: tuple[Layer, ...]) -> str:
    """What a user can write, short enough for an error message."""
    names = [_range(*run) for run in _runs(map(_own_address, layers))]
    return f"This model has: {', '.join(names)}; also all, auto."
