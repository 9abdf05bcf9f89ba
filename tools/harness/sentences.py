"""Texts that this pack's Python shows in the editor, as templates: its errors and warnings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .host import ROOT

_SAYING = {"tell", "_tell"}
_REASON = "blocks_only"  # a keyword whose value is a part of errors


def sentences(*paths: str) -> dict[str, str]:
    """{template: file} of the errors raised and warnings told in these files, and of the reasons in them: what
    functions named why_... return, and why only blocks of a family can be skipped. {0}, {1} ... stand for values."""
    found = {}
    for path in paths:
        for file in sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]:
            for template in _of(file):
                found.setdefault(template, str(file.relative_to(ROOT)))
    return found


def _of(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name.lstrip("_").startswith("why_"):
            given = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
            yield from filter(None, map(_template, given))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == _REASON:
            yield from filter(None, [_template(node.value)])
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        if (isinstance(node, ast.Raise) and name.endswith("Error")) or name in _SAYING:
            yield from filter(None, [_template(call.args[0])])


def _template(text: ast.expr) -> str | None:
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return text.value
    if not isinstance(text, ast.JoinedStr):
        return None
    parts, values = [], 0
    for part in text.values:
        if isinstance(part, ast.Constant):
            parts.append(part.value)
        else:
            parts.append(f"{{{values}}}")
            values += 1
    return "".join(parts)
