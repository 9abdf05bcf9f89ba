"""One run of a sampler: attaching, the calls of a step, what is remembered and shown. Knows no node."""
