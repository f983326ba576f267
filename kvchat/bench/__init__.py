"""The instrument that measures speed and memory: cells of methods and tests, four formats."""
