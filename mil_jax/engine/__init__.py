"""The replica engine: many small models trained on one cohort as one program."""
