"""Trains the shipped model, and runs an experiment with it."""
