"""The commands that are one file each: nox -s demo, serve and internals."""
