"""The instrument that measures quality at a budget: tasks, measurement, report."""
