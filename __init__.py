"""Perturbed-Attention Guidance (PAG) for ComfyUI."""

import logging

from .host_version import why_unsupported

if reason := why_unsupported():
    logging.error("%s", reason)
    NODE_CLASS_MAPPINGS: dict[str, type] = {}  # no nodes, said in a way that every ComfyUI understands
else:
    from .nodes import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
