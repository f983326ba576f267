"""The instrument that measures speed and memory: every method by every test, a record each."""
