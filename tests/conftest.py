"""For every test: the repository's root on hand, and never imported as a test package."""

import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]  # for `harness` and the other tools, and for `support`


class RootIsNoTestPackage:
    """The root's __init__.py belongs to ComfyUI; pytest would import it on the way down to tests/."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


@pytest.hookimpl(tryfirst=True)  # before -m is heeded
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the marker in_turn leaves out becomes slow."""
    values, others = defaultdict(dict), defaultdict(dict)  # {test: {a combination: its place}}
    for item in items:
        if marker := item.get_closest_marker("in_turn"):
            given = {name: id(value) for name, value in item.callspec.params.items()}
            value = tuple(given.pop(name) for name in marker.args)
            place = values[item.function].setdefault(value, len(values[item.function]))
            other = others[item.function].setdefault(tuple(given.values()), len(others[item.function]))
            item.in_turn = place, other
    for item in items:
        if hasattr(item, "in_turn") and item.in_turn[1] % len(values[item.function]) != item.in_turn[0]:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoTestPackage())


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI whose server a test starts; without one the test is skipped, and says how to get it."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        pytest.skip("needs a ComfyUI: set COMFYUI_PATH, or use nox (-s tests, -s package)")
    return Path(named)
