"""A workflow as the editor saves it, laid out in groups from left to right, with the nodes of a group stacked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from harness.workflow import inputs_of, is_widget

BLUE, GREEN = "#3f789e", "#3f9e5a"  # of groups: the model's own, and PAG's
POSITIVE, NEGATIVE = ("#232", "#353"), ("#322", "#533")  # of nodes, as the host's templates have them
NOTE = ("#432", "#653")
WIDTH, RESULT_WIDTH, NOTE_WIDTH = 330, 500, 420
MARGIN, GAP, HEAD = 20, 60, 80  # between nodes and group; between nodes; above the first one
ROW, WIDGET, TEXT = 22, 26, 120  # heights: of a socket, a widget, a field of several lines
PANEL = 250  # of the layer picker
PREVIEW = 290  # what a sampler grows by when previews are on
RESULT = 520  # of a node that shows a picture
PICTURES = {"SaveImage", "PreviewImage", "SaveVideo", "LoadImage"}
PANELS = {"PAGModelPatch", "PAGKSampler", "PAGGuider", "PAGAVGuider", "PAGOptions"}
PREVIEWS = {"KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced", "PAGKSampler", "PAGHeadSearch"}


@dataclass(frozen=True)
class Output:
    """The output of a node, to be given as another's input."""

    node: int
    slot: int
    type: str


@dataclass
class Node:
    id: int
    saved: dict  # as the editor saves it

    def __getitem__(self, name: int | str) -> Output:
        slots = self.saved["outputs"]
        slot = name if isinstance(name, int) else [slot["name"] for slot in slots].index(name)
        return Output(self.id, slot, slots[slot]["type"])


@dataclass
class Graph:
    """
    Attributes:
        definitions: {node: its schema}, as the server's /object_info.
        models: {file: {"name", "url", "directory"}}, for the loaders that name it.
    """

    title: str
    definitions: dict[str, dict]
    models: dict[str, dict]
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)
    x: float = 0.0

    def group(self, title: str, color: str = BLUE) -> None:
        """What is added from now on stands in a group of its own, right of the last one."""
        if self.groups:
            self.close()
        self.groups.append({"id": len(self.groups) + 1, "title": f"{len(self.groups) + 1}  {title}", "color": color,
                            "bounding": [self.x - MARGIN, 0, 0, HEAD], "flags": {}})

    def close(self) -> None:
        """Ends the last group."""
        left, top, width, height = self.groups[-1]["bounding"]
        self.groups[-1]["bounding"] = [left, top, width + MARGIN, height - GAP + MARGIN]
        self.x += width + 2 * MARGIN

    def place(self, width: float, height: float, room: float = 0.0) -> tuple[float, float]:
        bounding = self.groups[-1]["bounding"]
        position = (self.x, bounding[1] + bounding[3])
        bounding[2] = max(bounding[2], width + MARGIN)
        bounding[3] += height + room + GAP
        return position

    def add(self, kind: str, title: str = "", colors: tuple[str, str] | None = None, **given) -> Node:
        """A node with these inputs: an Output becomes a link, all else a widget's value. KeyError for no such input."""
        definition = self.definitions[kind]
        inputs = list(inputs_of(definition))
        if unknown := given.keys() - {name for name, *_ in inputs}:
            raise KeyError(f"{kind} has no input {', '.join(unknown)}")
        number = len(self.nodes) + 1
        slots, values, height = [], [], 0.0
        for name, kind_of, options, required in inputs:
            widget = is_widget(kind_of, options)
            value = given.get(name)
            if isinstance(value, Output) or not widget:
                slot = {"name": name, "type": kind_of if isinstance(kind_of, str) else "COMBO",
                        "link": self.link(value, number, len(slots)) if isinstance(value, Output) else None}
                slots.append(slot | ({} if required else {"shape": 7}) | ({"widget": {"name": name}} if widget else {}))
                height += ROW
            if widget:
                values += saved_values(value if name in given and not isinstance(value, Output) else
                                       default_of(kind_of, options), options)
                height += TEXT if options.get("multiline") else WIDGET
        outputs = [{"name": name, "type": kind_of if isinstance(kind_of, str) else "COMBO", "links": []}
                   for name, kind_of in zip(definition["output_name"], definition["output"], strict=True)]
        height = max(height, ROW * len(outputs)) + 40 + (PANEL if kind in PANELS else 0)
        width = WIDTH
        if kind in PICTURES:
            width, height = (WIDTH, 330) if kind == "LoadImage" else (RESULT_WIDTH, RESULT)
        ours = kind.startswith("PAG")
        properties = {"Node name for S&R": kind, "cnr_id": "perturbed-attention-guidance" if ours else "comfy-core",
                      **({"pag_panel": "schedule" if kind == "PAGOptions" else "layers"} if kind in PANELS else {})}
        if files := [self.models[value] for value in values if isinstance(value, str) and value in self.models]:
            properties["models"] = files
        node = {"id": number, "type": kind, "pos": list(self.place(width, height, PREVIEW if kind in PREVIEWS else 0)),
                "size": [width, height], "flags": {}, "order": number - 1, "mode": 0, "inputs": slots,
                "outputs": outputs, **({"title": title} if title else {}), "properties": properties,
                "widgets_values": values, **colored(colors)}
        self.nodes.append(node)
        return Node(number, node)

    def link(self, output: Output, node: int, slot: int) -> int:
        number = len(self.links) + 1
        self.links.append([number, output.node, output.slot, node, slot, output.type])
        self.nodes[output.node - 1]["outputs"][output.slot]["links"].append(number)
        return number

    def note(self, text: str) -> None:
        """What to see and what to try, left of everything."""
        number = len(self.nodes) + 1
        lines = sum(1 + len(line) // 48 for line in text.splitlines())
        height = 60 + 19 * lines
        self.nodes.append({"id": number, "type": "MarkdownNote", "pos": [-NOTE_WIDTH - 3 * MARGIN, 0],
                           "size": [NOTE_WIDTH, height], "flags": {}, "order": number - 1, "mode": 0, "inputs": [],
                           "outputs": [], "title": "What to see, what to try", "properties": {},
                           "widgets_values": [text], **colored(NOTE)})

    def saved(self) -> dict:
        """The file's content."""
        self.close()
        return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.title)), "revision": 0, "last_node_id": len(self.nodes),
                "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links, "groups": self.groups,
                "config": {}, "extra": {"ds": {"scale": 0.6, "offset": [560, 120]}}, "version": 0.4}


def colored(colors: tuple[str, str] | None) -> dict[str, str]:
    return {"color": colors[0], "bgcolor": colors[1]} if colors else {}


def default_of(kind, options: dict):
    """What the editor puts into a widget."""
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices:
        return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]  # of a dynamic combo
    if isinstance(kind, list):
        return ""
    return {"INT": options.get("min", 0), "FLOAT": options.get("min", 0.0), "BOOLEAN": False}.get(kind, "")


def saved_values(value, options: dict) -> list:
    """With the widgets that exist in the editor only: what becomes of a seed after a run, and the upload button."""
    if options.get("control_after_generate"):
        return [value, "fixed"]
    return [value, "image"] if options.get("image_upload") else [value]
