"""Metrics on the host, one file per kind of target."""
