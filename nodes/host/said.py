"""What computations had to say, while the server runs: the host keeps their results, and says nothing when it takes one
again for an editor that was not there the first time.
"""

from __future__ import annotations

import hashlib
import json
from graphlib import CycleError, TopologicalSorter
from typing import Any

MOST = 1000  # computations
_said: dict[str, tuple[str, list[dict]]] = {}  # {fingerprint of a node: (the run, its sentences)}, the oldest first


def keep(server: Any, prompt_id: str, node: str, sentence: dict | None = None) -> None:
    """Keep a sentence of a running node; without one, only what the node said in earlier runs goes."""
    mark = _fingerprints(_prompt(server, prompt_id)).get(node)
    if mark is None:  # a node that another one has made
        return
    run, sentences = _said.pop(mark, (prompt_id, []))
    sentences = [*(sentences if run == prompt_id else []), *([sentence] if sentence else [])]
    if sentences:
        _said[mark] = prompt_id, sentences
    while len(_said) > MOST:
        del _said[next(iter(_said))]


def of_run(server: Any, prompt_id: str) -> list[dict]:
    """[{"node": id, "kind", "text"}] of all nodes of a run, whichever run computed them."""
    return [{"node": node, **sentence} for node, mark in _fingerprints(_prompt(server, prompt_id)).items()
            for sentence in _said.get(mark, ("", []))[1]]


def _prompt(server: Any, prompt_id: str) -> dict[str, dict]:
    """{node id: {"class_type", "inputs"}} of a run that goes on or has ended; empty where the host knows none."""
    queue = server.prompt_queue
    found = [item for item in queue.get_current_queue_volatile()[0] if item[1] == prompt_id]
    found += [entry["prompt"] for entry in queue.get_history(prompt_id=prompt_id).values()]
    return found[0][2] if found else {}


def _fingerprints(prompt: dict[str, dict]) -> dict[str, str]:
    """A text for each node; two that compute the same have the same, wherever they stand. Empty for a circle."""
    links = {node: {name: value for name, value in one["inputs"].items()
                    if isinstance(value, list) and len(value) == 2 and value[0] in prompt}
             for node, one in prompt.items()}
    order = TopologicalSorter({node: [origin for origin, _ in found.values()] for node, found in links.items()})
    marks: dict[str, str] = {}
    try:
        for node in order.static_order():
            above = {name: [marks[origin], slot] for name, (origin, slot) in links[node].items()}
            content = json.dumps([prompt[node]["class_type"], {**prompt[node]["inputs"], **above}], sort_keys=True)
            marks[node] = hashlib.sha256(content.encode()).hexdigest()
    except CycleError:
        return {}
    return marks
