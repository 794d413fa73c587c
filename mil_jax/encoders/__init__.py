"""Encoders: one instance (a tile's image, a region of tile vectors) -> one vector."""
