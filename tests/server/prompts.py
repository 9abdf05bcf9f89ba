"""Prompts in the API's format, on the shipped model."""

from __future__ import annotations

from harness.workflow import Prompt


def with_options(prompt: Prompt, **options) -> Prompt:
    """The prompt with a PAG Options node at the sampler."""
    sampler = {**prompt["5"], "inputs": {**prompt["5"]["inputs"], "options": ["8", 0]}}
    return {**prompt, "5": sampler, "8": {"class_type": "PAGOptions", "inputs": options}}


def adm(label: int = -1, size: int = 32, **sampler) -> Prompt:
    """Loader, labels, PAGKSampler with these inputs, decoder, preview."""
    inputs = {"seed": 0, "steps": 2, "cfg": 1.0, "pag_scale": 2.0, "layers": "auto", "sampler_name": "euler",
              "scheduler": "normal", "denoise": 1.0, **sampler}
    return {
        "1": {"class_type": "PAGADMLoader", "inputs": {"ckpt_name": "adm-emoji-64.safetensors"}},
        "2": {"class_type": "PAGADMClassLabel", "inputs": {"model": ["1", 0], "label": label}},
        "3": {"class_type": "PAGADMClassLabel", "inputs": {"model": ["1", 0], "label": -1}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 2}},
        "5": {"class_type": "PAGKSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0],
                                                      "latent_image": ["4", 0], **inputs}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 1]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
