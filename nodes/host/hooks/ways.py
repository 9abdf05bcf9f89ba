"""Which way into a network there is, by its kind. The only place that chooses."""

from __future__ import annotations

from ....pag_core.attention import PerturbationError
from ....pag_core.perturbation import Perturbation
from ..models.layers import ModelLayers
from ..models.units import LayerKey
from .attention import LayerPerturbation
from .blocks import BlockPatch
from .exchange import ExchangePatch
from .forms import Forms
from .transformers import TransformerPatch
from .u_nets import UNetPatch
from .unknown import UnknownPatch

Patch = UNetPatch | TransformerPatch | BlockPatch | ExchangePatch | UnknownPatch


def way_in(found: ModelLayers, layers: dict[LayerKey, LayerPerturbation], forms: Forms | None = None) -> Patch:
    """What perturbs these layers, {the layer's key: what is done there}; `forms` as for `BlockPatch`.

    Raises:
        PerturbationError: where the model's family does not allow their kind of perturbation.
    """
    if found.family and found.family.is_exchange:
        return ExchangePatch(found.family, layers)
    for layer in layers.values():
        check_family(found, layer.perturbation)
    if any(layer.perturbation.kind.acts_on_block for layer in layers.values()):
        return BlockPatch(found.family, layers, forms)
    if found.family and found.family.is_found and not any(layer.perturbation.kind.needs_map
                                                          for layer in layers.values()):
        return UnknownPatch(found.family, layers)
    return TransformerPatch(found.family, layers) if found.family else UNetPatch(layers)


def check_family(found: ModelLayers, perturbation: Perturbation) -> None:
    """PerturbationError where the model's family does not allow this kind of perturbation."""
    family, kind = found.family, perturbation.kind
    if not family or not family.blocks_only:
        return
    if kind.acts_on_block and kind.is_random:
        raise PerturbationError(f"{perturbation.perturbation} needs to know which tokens belong to the image, which is "
                                f"not possible on this model: {family.blocks_only}. Use skip_block.")
    if not kind.acts_on_block and (kind.needs_map or not family.is_found):
        raise PerturbationError(f"Perturbed-Attention Guidance cannot perturb this model's attention: "
                                f"{family.blocks_only}. Whole blocks can be skipped instead: set perturbation in "
                                f"PAG Options to skip_block.")
