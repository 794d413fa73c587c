"""Tiles: where they lie, their pixels and quality."""
