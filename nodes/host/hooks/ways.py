"""Which way into a network there is, by its kind. The only place that chooses."""

from __future__ import annotations

from ....pag_core.attention import PerturbationError
from ..models.layers import ModelLayers
from ..models.units import LayerKey
from .attention import LayerPerturbation
from .blocks import BlockPatch
from .exchange import ExchangePatch
from .transformers import TransformerPatch
from .u_nets import UNetPatch
from .unknown import UnknownPatch

Patch = UNetPatch | TransformerPatch | BlockPatch | ExchangePatch | UnknownPatch


def way_in(found: ModelLayers, layers: dict[LayerKey, LayerPerturbation]) -> Patch:
    """What perturbs these layers, {the layer's key: what is done there}.

    Raises:
        PerturbationError: where the model's family does not allow their kind of perturbation.
    """
    if found.family and found.family.is_exchange:
        return ExchangePatch(found.family, layers)
    if any(layer.perturbation.kind.acts_on_block for layer in layers.values()):
        moving = sorted({layer.perturbation.perturbation for layer in layers.values()
                         if layer.perturbation.kind.is_random})
        if moving and found.family and found.family.blocks_only:
            raise PerturbationError(f"{', '.join(moving)} needs to know which tokens belong to the image, which is not "
                                    f"possible on this model: {found.family.blocks_only}. Use skip_block.")
        return BlockPatch(found.family, layers)
    if found.family and found.family.is_found and not any(layer.perturbation.kind.needs_map
                                                          for layer in layers.values()):
        return UnknownPatch(found.family, layers)
    if found.family and found.family.blocks_only:
        raise PerturbationError(f"Perturbed-Attention Guidance cannot perturb this model's attention: "
                                f"{found.family.blocks_only}. Whole blocks can be skipped instead: set perturbation in "
                                f"PAG Options to skip_block.")
    return TransformerPatch(found.family, layers) if found.family else UNetPatch(layers)
