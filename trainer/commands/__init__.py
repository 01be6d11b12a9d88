"""The commands of `python -m trainer`: what each takes, and what it says."""
