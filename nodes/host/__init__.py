"""The one place that touches ComfyUI's internals."""
