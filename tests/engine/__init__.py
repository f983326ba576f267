"""Tests of the engine, below the command line."""
