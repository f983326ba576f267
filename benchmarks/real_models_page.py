"""Writes the tables of docs/results.md from docs/results/real-*.json."""

def write() -> None:
    """Later."""
