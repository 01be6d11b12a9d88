"""Command-line operations on a bot (queue, backup, restore), and its metrics."""
