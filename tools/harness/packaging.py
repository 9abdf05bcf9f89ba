"""What of pyproject.toml the registry requires and only the owner can say. Standard library only, for the noxfile."""

from __future__ import annotations

# {the field: what belongs there}
OWNERS_FIELDS = {
    ("tool", "comfy", "PublisherId"): "the publisher's id at registry.comfy.org, without the @",
    ("project", "urls", "Repository"): "the address of the repository",
}


def empty_fields(project: dict) -> dict[str, str]:
    """{field: what belongs there} of what is missing or empty in the content of a pyproject.toml."""
    return {".".join(path): meaning for path, meaning in OWNERS_FIELDS.items() if not value_of(project, path)}


def value_of(project: dict, path: tuple[str, ...]) -> str:
    value = project
    for name in path:
        value = value.get(name, {})
    return value if isinstance(value, str) else ""


def what_is_missing(empty: dict[str, str]) -> str:
    fields = "; ".join(f"{name} ({meaning})" for name, meaning in empty.items())
    return (f"pyproject.toml lacks what the registry requires and only the owner can say: {fields}. To check all the "
            "rest: nox -s package -- --dry-run")
