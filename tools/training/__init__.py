"""Training the shipped model, and an experiment with it."""
