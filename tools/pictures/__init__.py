"""Draws the pictures of the README, the help pages and the example workflows."""
