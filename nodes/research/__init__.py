"""Nodes for what the paper did beyond guidance: pixel-space ADM models, restoration, score distillation, the search for heads."""
