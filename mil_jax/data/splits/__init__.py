"""Which bags train, validate and test: folds, published splits, leaks."""
