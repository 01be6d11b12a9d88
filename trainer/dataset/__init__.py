"""Datasets: opened, decoded, checked, split and reported, from top to bottom in `preparing/prepare.py`."""
