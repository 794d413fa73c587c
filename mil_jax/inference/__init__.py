"""Trained runs applied to other bags, and who may score whom."""
