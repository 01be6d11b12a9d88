"""Captions that a local model writes for pictures that have none."""
