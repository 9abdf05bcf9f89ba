"""Lists a model's layers and what a selection of them includes and costs."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..pag_core.selection import heads_text
from ..pag_core.settings import PAGOptions
from ..pag_core.stages import Stage, all_layers, select_stages
from . import inputs
from .host.models.families import Tokens
from .host.models.layers import ModelLayers, model_layers
from .host.sockets import check_model


class PAGLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGLayers",
            display_name="PAG Layers",
            category=inputs.CATEGORY,
            description="Lists the self-attention layers of a model with all their names, shows which of them a "
                        "selection includes, and estimates the cost of the extra pass. Does not sample.",
            search_aliases=["perturbed attention guidance layers", "self-attention layers", "list layers", "层列表",
                            "레이어 목록"],
            inputs=[inputs.model(), inputs.layers()],
            outputs=[io.String.Output(display_name="text", tooltip="The list, as shown on the node.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, layers: str) -> io.NodeOutput:
        check_model(model)
        found = model_layers(model)
        text = _describe(found, select_stages(layers, tuple(found.layers), found.auto))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _describe(found: ModelLayers, stages: tuple[Stage, ...]) -> str:
    chosen = all_layers(stages)
    groups = {group.name: group for group in found.family.groups} if found.family else {}
    rows = [("layer", "also", "heads", "tokens", "selected")]
    for layer, key in found.layers.items():
        # Of a network whose attention is out of reach, it is not known either which tokens it sees.
        tokens = "" if found.family and found.family.blocks_only else \
            (groups[key[0]].tokens if groups else Tokens.IMAGE).value
        heads = chosen.get(layer)
        selected = "" if layer not in chosen else "all heads" if heads is None else heads_text(heads)
        rows.append((layer.name, " ".join(layer.aliases), str(layer.heads), tokens, selected))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                      for row in rows)
    shared = ", since everything before the first selected layer is shared with the normal pass" \
        if found.shares_prefix else ""
    blocks_only = f"{found.family.blocks_only}: only skip_block works.\n" if found.family and \
        found.family.blocks_only else ""
    if found.family and found.family.is_found:
        blocks_only = (f"{found.family.blocks_only}: skip_block works; identity and skip_attention work where the "
                       f"first step shows that a block's attention contains image tokens only.\n")
    options = PAGOptions("skip_block" if blocks_only else "identity")
    during = "".join(f"Up to {stage.end:.0%}: {', '.join(layer.name for layer in stage.chosen)}.\n"
                     for stage in stages) if len(stages) > 1 else ""
    most = "at most " if found.family and not found.family.even else ""
    return (f"{found.name}: {len(found.layers)} {'blocks' if blocks_only else 'self-attention layers'}, {len(chosen)} "
            f"selected.\n{blocks_only}{during}"
            f"The extra pass costs {most}{found.extra(stages, options):.0%} of a full one{shared}.\n"
            f"auto: {found.auto} ({found.source})\n\n{table}\n")
