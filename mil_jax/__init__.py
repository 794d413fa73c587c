"""Multiple-instance learning on whole slide images, in JAX."""

__version__ = "0.1.0"
