"""Tests of floor 0 and 1: arithmetic."""
