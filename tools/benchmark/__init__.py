"""Measures what PAG costs: `nox -s bench`."""
