"""Builds the content of an example's file, with ComfyUI's schemas and the model links of its templates."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from .catalogue import Example
from .graph import Graph

TEMPLATES = "comfyui_workflow_templates_json"  # the host's requirement that holds its templates
NEVER_RUN = ("*Never run here on the real weights. The graph was run from loader to result on a small random model of "
             "the same class.*")


def definitions() -> dict[str, dict]:
    """Node id -> its schema, as the server's /object_info tells it, of the host's own nodes and this pack's."""
    nodes = importlib.import_module("nodes")  # the host's
    asyncio.run(nodes.init_builtin_extra_nodes())
    found = {name: schema(node) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
    extension = asyncio.run(importlib.import_module("pag_pack").comfy_entrypoint())
    ours = asyncio.run(extension.get_node_list())
    return found | {node.GET_SCHEMA().node_id: schema(node) for node in ours}


def schema(node: type) -> dict:
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    return {"input": node.INPUT_TYPES(), "output": node.RETURN_TYPES,
            "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES)}


def templates() -> Iterator[tuple[str, dict]]:
    """(name, content) of the host's templates."""
    folder = Path(importlib.import_module(TEMPLATES).__file__).parent / "templates"
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "nodes" in content:
            yield path.stem, content


def template_files() -> dict[str, dict[str, dict]]:
    """{template: {model file: {"name", "url", "directory"}}}, as the templates' loaders carry them."""
    files: dict[str, dict[str, dict]] = {}
    for name, content in templates():
        parts = [content, *content.get("definitions", {}).get("subgraphs", [])]
        files[name] = {model["name"]: model for part in parts for node in part["nodes"]
                       for model in node.get("properties", {}).get("models", [])}
    return files


def build(example: Example, known: dict[str, dict], files: dict[str, dict[str, dict]]) -> dict:
    """The workflow, with its note."""
    graph = Graph(example.name, known, files[example.template])
    example.build(graph)
    graph.note(note(example, graph))
    return graph.saved()


def note(example: Example, graph: Graph) -> str:
    models = {model["name"]: model for node in graph.nodes for model in node["properties"].get("models", [])}
    lines = [f"## {example.name}", "", example.intro, "", "**PAG settings.** " + example.settings, "",
             "**Try**", *(f"- {line}" for line in example.tries), "",
             f"**Files** are the same as in ComfyUI's own template `{example.template}`, and so are steps, sampler and "
             f"cfg unless this note says otherwise:",
             *(f"- [{model['name']}]({model['url']}) in `models/{model['directory']}`" for model in models.values()),
             "", NEVER_RUN]
    return "\n".join(lines)
