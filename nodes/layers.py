"""Which layers a model has, and what a selection of them means."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..pag_core.selection import Layer, select
from . import inputs
from .host.families import Tokens
from .host.layers import ModelLayers, model_layers, recomputed_share


class PAGLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGLayers",
            display_name="PAG Layers",
            category=inputs.CATEGORY,
            description="Lists the self-attention layers of a model with every name they answer to, what a selection "
                        "takes of them, and how much of the network the extra pass has to run. Samples nothing.",
            search_aliases=["perturbed attention guidance layers", "pag layers", "self-attention layers"],
            inputs=[inputs.model(), inputs.layers()],
            outputs=[io.String.Output(display_name="text", tooltip="The list, as shown on the node.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, layers: str) -> io.NodeOutput:
        found = model_layers(model)
        chosen = select(layers, tuple(found.layers), found.auto)
        text = _describe(found, chosen, recomputed_share(model, found, chosen))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _describe(found: ModelLayers, chosen: dict[Layer, frozenset[int] | None], share: float) -> str:
    groups = {group.name: group for group in found.family.groups} if found.family else {}
    rows = [("layer", "also", "heads", "tokens", "selected")]
    for layer, key in found.layers.items():
        also = [name for prefix, number in layer.addresses.items() if (name := f"{prefix}{number}") != layer.name]
        tokens = groups[key[0]].tokens if groups else Tokens.IMAGE
        selected = _heads(chosen[layer]) if layer in chosen else ""
        rows.append((layer.name, " ".join(also), str(layer.heads), tokens.value, selected))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                      for row in rows)
    cost = f"{share:.0%} of its blocks, for those before the first selected layer are shared with the normal pass" \
        if share < 1 else "all of its blocks"
    return (f"{found.name}: {len(found.layers)} self-attention layers, {len(chosen)} selected.\n"
            f"The extra pass runs the network again in {cost}.\n"
            f"auto: {found.auto} ({found.source})\n\n{table}\n")


def _heads(heads: frozenset[int] | None) -> str:
    """As the layer grammar writes them: h0+2-3."""
    if heads is None:
        return "all heads"
    runs: list[list[int]] = []
    for head in sorted(heads):
        if runs and runs[-1][1] == head - 1:
            runs[-1][1] = head
        else:
            runs.append([head, head])
    return "h" + "+".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
