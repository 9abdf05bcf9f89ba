"""Commands that consist of one file each, such as nox -s demo, serve and internals."""
