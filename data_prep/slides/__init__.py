"""Slides: opening them, tissue, stain, annotations."""
