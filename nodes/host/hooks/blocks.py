"""Operations on whole blocks: of the rows that enter one, the weak ones skip it, or run it shuffled or in part.

For the length of one forward the block has another `forward`. Plain rows run the block's own, together, and never with
weak rows; a block that is skipped at full strength is not computed for these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from ....pag_core import adm
from ....pag_core.attention import PerturbationError
from ....pag_core.blocks import Streams
from ....pag_core.perturbation import perturb_block
from ..models.families import Family, Group, Tokens, result_axis
from ..models.structure import group_units
from ..models.units import LayerKey, u_net_blocks
from .attention import LayerPerturbation, flags
from .causal import untouched
from .compiled import other_forward
from .forms import Call, Forms, tensors_of
from .module_calls import ModuleCall
from .rows import map_tensors, merged, pick, running
from .tokens import TokenCount


@dataclass(frozen=True)
class Block:
    """One block, and how it hands on its streams.

    Attributes:
        group: the data of its family's group; of U-Nets and ADM the default's.
    """

    module: nn.Module
    group: Group


_TOKENS, _PLANE = Group("", "", ""), Group("", "", "", channels=1)


def blocks_of(network: nn.Module, family: Family | None) -> dict[LayerKey, Block]:
    """{a layer's key: the block that holds it}."""
    if family:
        found = {}
        for group in family.groups:
            units = (unit for unit, layers in group_units(network, group) for _ in layers)
            found |= {(group.name, index): Block(unit, group) for index, unit in enumerate(units)}
        return found
    found = {}
    for block, layers in u_net_blocks(network):
        for layer in layers:
            if isinstance(layer, adm.AttentionBlock):
                found[(*block, 0)] = Block(layer, _PLANE)
            for index, module in enumerate(getattr(layer, "transformer_blocks", ())):
                found[(*block, index)] = Block(module, _TOKENS)
    return found


class BlockPatch:
    """Alters the blocks that hold the selected layers in one forward; see `transformers.TransformerPatch`.

    Args:
        forms: what is known of blocks that no table knows.
    """

    def __init__(self, family: Family | None, layers: dict[LayerKey, LayerPerturbation],
                 forms: Forms | None = None) -> None:
        self.family = family
        self.layers = layers
        self.forms = forms or Forms()
        # What a network keeps of one call's rows for the next has to be of whole calls, unless its blocks return it.
        self.is_apart = bool(family and family.keeps_between_calls and not any(group.keeps for group in family.groups))

    @contextmanager
    def around(self, network: nn.Module, options: dict, is_ours: Callable[[object], bool],
               skipped: Callable[[str], None], noise_key: tuple) -> Iterator[dict]:
        """For one forward of `network`; arguments as for `TransformerPatch.around`."""
        uuids = options["uuids"]
        if not any(map(is_ours, uuids)):
            with self.learning(network):
                yield options
            return
        count, blocks = TokenCount(self.family), blocks_of(network, self.family)
        axes = self.family.axes if self.family else {}
        of_module: dict[nn.Module, list[_Part]] = defaultdict(list)
        for key, layer in self.layers.items():
            of_module[blocks[key].module].append(_Part(blocks[key].group, layer))
        with ExitStack() as stack:
            for handle in count.hooks(network, self.layers if self.family else ()):
                stack.callback(handle.remove)
            run: set[str] = set()
            for module, parts in of_module.items():
                def altered(forward: Callable, module=module, parts=tuple(parts)) -> Callable:
                    return _Altered(module, forward, parts, axes, count, noise_key, skipped, uuids, is_ours, run,
                                    self.forms)

                stack.enter_context(other_forward(module, altered))
            is_found = self.family is not None and self.family.is_found
            run_inside = stack.enter_context(_watched(of_module if is_found else ()))
            yield stack.enter_context(untouched(network, options))
            idle = sorted({layer.name for layer in self.layers.values()} - run)
            if idle and self.family and run_inside:  # else a cache has answered the call
                raise PerturbationError(f"layers: {', '.join(idle)} of {self.family.name} cannot be skipped, because "
                                        f"the network does not call the block as a whole. Select other layers.")

    @contextmanager
    def learning(self, network: nn.Module) -> Iterator[None]:
        """For one forward of plain rows, which shows what blocks pass on that no table knows."""
        if not (self.family and self.family.is_found):
            yield
            return
        blocks = blocks_of(network, self.family)
        with self.forms.watching([(layer.name, blocks[key].module) for key, layer in self.layers.items()]):
            yield


@contextmanager
def _watched(blocks: Iterable[nn.Module]) -> Iterator[set[str]]:
    """Gets a name where a module inside one of these blocks runs."""
    run: set[str] = set()
    with ExitStack() as stack:
        for name, part in (named for block in blocks for named in block.named_modules() if named[0]):
            stack.callback(part.register_forward_pre_hook(lambda *_, name=name: run.add(name)).remove)
        yield run


@dataclass(frozen=True)
class _Part:
    """A selected layer, and the data of its group."""

    group: Group
    layer: LayerPerturbation


@dataclass(frozen=True)
class _Altered:
    """A block's forward, with weak rows among those of the batch.

    Attributes:
        module: the block.
        forward: its own.
        parts: the selected layers that the block holds: the video's, the sound's.
        axes: as in `Family.axes`.
        count: where the image tokens are.
        uuids: of the rows that are in the batch at the moment; see `rows.running`.
        run: gets the names of the layers whose block has run.
        forms: as in `BlockPatch`.
    """

    module: nn.Module
    forward: Callable
    parts: tuple[_Part, ...]
    axes: Mapping[str | int, int | None]
    count: TokenCount
    noise_key: tuple
    skipped: Callable[[str], None]
    uuids: list
    is_ours: Callable[[object], bool]
    run: set[str]
    forms: Forms

    @property
    def group(self) -> Group:
        return self.parts[0].group

    @property
    def layer(self) -> LayerPerturbation:
        return self.parts[0].layer

    def __call__(self, *args, **kwargs):
        self.run.update(part.layer.name for part in self.parts)
        if self.group.by_shape:
            return self._by_shape(args, kwargs)
        call = ModuleCall(self.group, self.axes, args, kwargs)
        axis = result_axis(self.axes)
        ours = flags(self.uuids, self.is_ours, call.streams[0].movedim(axis, 0))
        if all(ours) and not self.layer.perturbation.kind.is_random:
            ours = [True]  # how they lie in the batch is of no matter
        if call.streams[0].shape[axis] % len(ours):
            self.skipped(self.layer.name)
            return self.forward(*args, **kwargs)
        plain = [row for row, weak in enumerate(ours) if not weak]
        makes_kept = self._makes_kept(call)
        streams: dict[int, tuple] = {}
        rests: list[tuple] = []
        if plain:
            given = call.of_rows(plain, len(ours))
            with self._running(plain, ours):
                out, rest = call.run(self.forward, given)
            rests.append(rest)
            for place, row in enumerate(plain):
                streams[row] = tuple(None if x is None else pick(x, [place], len(plain), axis) for x in out)
        for row, weak in enumerate(ours):
            if weak:
                given = call.of_rows([row], len(ours))
                with self._running([row], ours):
                    streams[row], rest = self._weak(given, axis)
                rests.append(rest)
        joined = tuple(None if None in parts else parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
                       for parts in zip(*(streams[row] for row in range(len(ours))), strict=True))
        if not call.is_tuple:
            return joined[0]
        return *joined, *(self._kept(rests, plain, ours) if makes_kept else next(filter(None, rests), ()))

    def _makes_kept(self, call: ModuleCall) -> bool:
        """Whether the network keeps something of what the block returns."""
        return self.group.keeps is not None and not call.kwargs.get(self.group.keeps[1])

    @staticmethod
    def _kept(rests: list[tuple], plain: list[int], ours: list[bool]) -> tuple:
        """That of all rows, from that of the plain ones together and of each weak one."""
        order = [*plain, *(row for row, weak in enumerate(ours) if weak)]
        back = [order.index(row) for row in range(len(ours))]
        return map_tensors(merged(rests, (torch.Tensor,), torch.cat), lambda t: pick(t, back, len(ours)))

    def _running(self, rows: list[int], ours: list[bool]) -> AbstractContextManager[None]:
        return running(self.uuids, rows if len(ours) == len(self.uuids) else range(len(self.uuids)))

    def _by_shape(self, args: tuple, kwargs: dict):
        """The block's result with each tensor moved towards the argument that it continues; for calls of weak rows
        alone."""
        if not all(map(self.is_ours, self.uuids)):
            raise PerturbationError(f"{self.layer.name} got plain and perturbed rows in one call, which only a known "
                                    f"network supports.")
        form = self.forms.of(self.module, args, kwargs)
        if form and form.output is not None and not self.layer.perturbation.needs_map:
            return form.standing_in(tensors_of(args, kwargs))
        if form:
            before = [t.clone() for t in tensors_of(args, kwargs)]  # the block may change them
            out = self.forward(*args, **kwargs)
        else:
            call = Call(self.layer.name, self.module, args, kwargs)
            before, out = call.before, self.forward(*args, **kwargs)
            form = self.forms.learn(call, out)
        places = iter(form.places)

        def altered(x: torch.Tensor) -> torch.Tensor:
            return perturb_block((before[next(places)],), lambda _: (x,), self.layer.perturbation)[0]

        return map_tensors(out, altered)

    def _weak(self, call: ModuleCall, axis: int) -> tuple[Streams, tuple]:
        """The streams of one weak row, and what else its block returned."""
        latest: Streams = ()
        rest: tuple = ()

        def to_core(x: torch.Tensor) -> torch.Tensor:
            return x.movedim(axis, 0).movedim(self.group.channels, -1)

        def from_core(x: torch.Tensor) -> torch.Tensor:
            return x.movedim(-1, self.group.channels).movedim(0, axis)

        def run(given: Streams) -> Streams:
            nonlocal latest, rest
            out, rest = call.run(self.forward, call.with_streams(tuple(map(from_core, given))))
            # The last block of some networks returns no text, for nobody reads it.
            latest = tuple(own if x is None else to_core(x) for own, x in zip(given, out, strict=True))
            return latest

        streams = tuple(map(to_core, call.streams))
        # What moves a layer's own tokens acts for each layer of the block; what skips the block, once.
        acting = self.parts if self.layer.perturbation.kind.needs_map else self.parts[:1]
        out = reduce(self._altering, acting, run)(streams)
        # A copy of what comes out as it went in, for a network may add to a block's output in place (Wan VACE).
        out = tuple(x.clone() if any(x is given for given in streams) else x for x in out)
        if self._makes_kept(call):
            if not latest:
                run(streams)
            # What the network keeps is for other calls too, so these tokens stay what the block makes of them.
            out = (torch.cat([latest[0][:, :self.count.kept], out[0][:, self.count.kept:]], dim=1),)
        return tuple(map(from_core, out)), rest or ((None,) if self.group.keeps else ())

    def _altering(self, run: Callable[[Streams], Streams], part: _Part) -> Callable[[Streams], Streams]:
        """`run` with one layer's operation around it."""
        return lambda streams: perturb_block(streams, run, part.layer.perturbation,
                                             image=self._image(part.group, streams),
                                             noise_key=(part.layer.name, *self.noise_key))

    def _image(self, group: Group, streams: Streams) -> tuple[int, slice] | None:
        """(stream, its tokens) that a group's layers act on; None where this is not known."""
        if self.count.family and self.count.family.blocks_only:
            return None
        place = min(group.image_stream, len(streams) - 1)
        # In streams of their own, and where they lie in a plane, all tokens are the image's.
        tokens = group.tokens if len(streams) == 1 and group.channels == -1 else Tokens.IMAGE
        image = self.count.image_tokens(tokens, streams[place].flatten(1, -2).shape[1])
        return None if image is None else (place, image)
