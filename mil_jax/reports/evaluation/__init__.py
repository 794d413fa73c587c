"""The report of an evaluation: metrics, calibration, instances."""
