"""Tests the paper's claims about PAG on the shipped model: `nox -s evaluate`."""
