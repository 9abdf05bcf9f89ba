"""Fields of pyproject.toml that the registry requires and only the owner can fill in. Standard library only."""

from __future__ import annotations

# {the field: what belongs there}
OWNERS_FIELDS = {
    ("tool", "comfy", "PublisherId"): "the publisher's id at registry.comfy.org, without the @",
    ("project", "urls", "Repository"): "the URL of the repository",
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
    return (f"pyproject.toml lacks fields that the registry requires and only the owner can fill in: {fields}. To "
            "check everything else: nox -s package -- --dry-run")
