"""Preparation of data before training: from slides and feature files to shards."""
