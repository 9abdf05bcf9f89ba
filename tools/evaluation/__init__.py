"""Whether PAG does on the shipped model what the paper says: `nox -s evaluate`."""
