"""Which way into a network there is, by its kind. The only place that chooses."""

from __future__ import annotations

from ..models.layers import ModelLayers
from .attention import LayerPerturbation
from .transformers import TransformerPatch
from .u_nets import UNetPatch

Patch = UNetPatch | TransformerPatch


def way_in(found: ModelLayers, layers: dict[object, LayerPerturbation]) -> Patch:
    """What perturbs these layers, {the layer's key: what is done there}.

    Raises:
        PerturbationError: where the model's family does not allow their kind of perturbation.
    """
    return TransformerPatch(found.family, layers) if found.family else UNetPatch(layers)
