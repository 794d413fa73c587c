"""Data that comes with the library: the digits cohort, synthetic bags for forecasts."""
