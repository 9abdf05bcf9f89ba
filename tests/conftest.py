"""For every test: the repository's root on hand, and never imported as a test package."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]  # for `harness` and the other tools, and for `support`


class RootIsNoTestPackage:
    """The root's __init__.py belongs to ComfyUI; pytest would import it on the way down to tests/."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoTestPackage())


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI whose server a test starts; without one the test is skipped, and says how to get it."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        pytest.skip("needs a ComfyUI: set COMFYUI_PATH, or use nox (-s tests, -s package)")
    return Path(named)
