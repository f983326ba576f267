"""The instrument that measures quality at a budget: tasks, measurement, table, pictures."""
