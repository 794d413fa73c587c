"""What the commands do once their arguments are read; imported then, since JAX takes a second to import."""
