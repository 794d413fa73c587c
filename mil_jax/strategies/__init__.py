"""How a model is trained: one step as pure functions on pytrees, for one run."""
