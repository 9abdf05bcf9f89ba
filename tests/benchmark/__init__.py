"""What PAG costs."""
