"""What a loaded model has: family, layers and their keys, noise levels, the cost of a pass. Changes nothing."""
