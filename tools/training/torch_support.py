"""Optional features that make training faster."""

from __future__ import annotations

import shutil

import torch


def can_compile() -> bool:
    """torch.compile needs a C++ compiler; it makes our networks up to twice as fast."""
    return shutil.which("g++") is not None


def has_bfloat16(device_type: str) -> bool:
    return device_type == "cuda" or torch.cpu._is_avx512_bf16_supported()
