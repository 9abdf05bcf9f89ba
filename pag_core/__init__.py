"""The numerical core of Perturbed-Attention Guidance: torch only, no host imports, any device and dtype."""
