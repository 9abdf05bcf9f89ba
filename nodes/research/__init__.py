"""Nodes for what goes beyond guidance: pixel-space ADM models, restoration, score distillation, head search."""
