"""Captions for images without one, by a local model."""
