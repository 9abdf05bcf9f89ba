"""The example workflows for published models, built on the host's own templates: python -m examples writes them."""
