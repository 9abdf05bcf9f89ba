"""The numerical core by itself: `pag_core` comes from the root; ComfyUI must not be needed (test_architecture.py)."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: the root's `nodes` folder must not hide the host's module of that name
