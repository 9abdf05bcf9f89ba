"""What nodes that sample need: the guider, the sampler's call, decoding. PAG itself rides on the model."""
