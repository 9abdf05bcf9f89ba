"""Converts workflows saved by the editor into prompts for the server's API, and checks them against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .errors import HarnessError

Prompt = dict[str, dict]  # node id -> {"class_type": ..., "inputs": {name: value or [node id, output index]}}

NOTES = {"Note", "MarkdownNote"}
# A dynamic combo is known by its choices without inputs of their own, which are all that the examples use.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
MODEL_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".sft", ".gguf")


def load(path: Path, object_info: dict[str, dict]) -> Prompt:
    return to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)


def to_prompt(workflow: dict, object_info: dict[str, dict]) -> Prompt:
    """An editor-format workflow as an API prompt; HarnessError when a node is unknown or its widgets don't fit."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES:
            continue
        name = f"{kind} (node {node['id']})"
        if node.get("mode", 0) != 0:
            raise HarnessError(f"{name} is muted or bypassed, which only the editor supports.")
        if kind not in object_info:
            raise HarnessError(f"{name} is not a node of this server.")
        linked = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") is not None}
        try:
            values = widget_values(object_info[kind], node.get("widgets_values", []))
        except ValueError as error:
            raise HarnessError(f"{name}: {error}") from None
        prompt[str(node["id"])] = {"class_type": kind, "inputs": {**values, **linked}}
    return prompt


def inputs_of(definition: dict) -> Iterator[tuple[str, object, dict, bool]]:
    """(name, type, options, required) of a node's inputs, in the editor's order. A list as type is an old combo."""
    for group in ("required", "optional"):
        for name, spec in definition["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, spec[0], options, group == "required"


def is_widget(kind, options: dict) -> bool:
    """Whether the editor shows the input as a widget."""
    return (isinstance(kind, list) or options.get("widgetType", kind) in WIDGET_TYPES) and not options.get("forceInput")


def widget_values(definition: dict, saved: list) -> dict:
    """The saved list, which the editor keeps in widget order, as {input name: value}."""
    rest = list(saved)
    values = {}
    for name, kind, options, _ in inputs_of(definition):
        if not is_widget(kind, options):
            continue
        if not rest:
            raise ValueError(f"{len(saved)} widget values are too few; there is none for {name}.")
        values[name] = rest.pop(0)
        # Two widgets that exist in the editor only: what becomes of the seed after a run, and the upload button.
        if rest and options.get("control_after_generate") and rest[0] in AFTER_GENERATE:
            rest.pop(0)
        if rest and options.get("image_upload"):
            rest.pop(0)
    if rest:
        raise ValueError(f"{len(saved)} widget values are too many; {rest} are left over.")
    return values


def problems(prompt: Prompt, object_info: dict[str, dict]) -> list[str]:
    """What the server would refuse: unknown nodes and inputs, links that don't fit, values out of range."""
    found = []
    for node_id, node in prompt.items():
        definition = object_info.get(node["class_type"])
        if definition is None:
            found.append(f"node {node_id}: no node type {node['class_type']}")
            continue
        name = f"{node['class_type']} (node {node_id})"
        known = {name: (kind, options) for name, kind, options, _ in inputs_of(definition)}
        found += [f"{name}: no input {given!r}" for given in node["inputs"] if given not in known]
        found += [f"{name}: input {wanted!r} is missing" for wanted, _, _, required in inputs_of(definition)
                  if required and wanted not in node["inputs"]]
        for given, value in node["inputs"].items():
            if given in known:
                problem = input_problem(value, *known[given], prompt, object_info)
                if problem:
                    found.append(f"{name}: {given}: {problem}")
    return found


def input_problem(value, kind, options: dict, prompt: Prompt, object_info: dict[str, dict]) -> str | None:
    if isinstance(value, list):
        source, index = value
        if source not in prompt:
            return f"a link from node {source}, which is not there"
        outputs = object_info.get(prompt[source]["class_type"], {}).get("output", [])
        if index >= len(outputs):
            return f"a link from output {index} of {prompt[source]['class_type']}, which has {len(outputs)}"
        return None if fits(outputs[index], kind) else f"a link of type {outputs[index]} into {kind}"
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if kind == "COMFY_DYNAMICCOMBO_V3":
        choices = [choice["key"] for choice in options["options"]]
    if choices is not None:
        return None if value in choices else f"{value!r} is not among the choices"
    kind = options.get("widgetType", kind)
    if kind in ("INT", "FLOAT"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{value!r} is not a number"
        low, high = options.get("min", value), options.get("max", value)
        return None if low <= value <= high else f"{value} is not between {low} and {high}"
    expected = {"STRING": str, "BOOLEAN": bool}.get(kind)
    if expected is None:
        return f"{value!r} where a link of type {kind} belongs"
    return None if isinstance(value, expected) else f"{value!r} is not a {kind}"


def fits(output, wanted) -> bool:
    """Whether a link may join the two socket types; each may list several, or take anything."""
    types = [set(kind.split(",")) if isinstance(kind, str) else {"COMBO"} for kind in (output, wanted)]
    return any("*" in kinds for kinds in types) or bool(types[0] & types[1])


def missing_files(prompt: Prompt, object_info: dict[str, dict]) -> list[str]:
    """The model files that the prompt names and this server does not have."""
    missing = []
    for node in prompt.values():
        for name, kind, options, _ in inputs_of(object_info[node["class_type"]]):
            value = node["inputs"].get(name)
            choices = kind if isinstance(kind, list) else options.get("options", ())
            if isinstance(value, str) and value.endswith(MODEL_FILES) and value not in choices:
                missing.append(value)
    return missing


def only_branch_of(prompt: Prompt, class_type: str) -> Prompt:
    """The prompt with only its first node of that type, what is made from it, and what these need."""
    first = next(node_id for node_id, node in prompt.items() if node["class_type"] == class_type)
    chains = [upstream(prompt, node_id) for node_id in prompt]
    kept = set().union(*(chain for chain in chains if first in chain))
    return {node_id: node for node_id, node in prompt.items() if node_id in kept}


def upstream(prompt: Prompt, node_id: str) -> set[str]:
    """The node and everything it is made from."""
    links = [value for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return {node_id}.union(*(upstream(prompt, source) for source, _ in links))


def set_inputs(prompt: Prompt, class_type: str, **values) -> Prompt:
    """A copy of the prompt in which every node of that type has these values. KeyError if there is none."""
    if not any(node["class_type"] == class_type for node in prompt.values()):
        raise KeyError(f"the workflow has no {class_type}")
    return {node_id: {**node, "inputs": {**node["inputs"], **values}} if node["class_type"] == class_type else node
            for node_id, node in prompt.items()}
