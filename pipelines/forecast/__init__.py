"""Forecast of step time and cost: formulas for each pool, and a search over pool sizes."""
