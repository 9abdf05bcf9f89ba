"""Example workflows for published models, built on ComfyUI's own templates; python -m examples writes them."""
