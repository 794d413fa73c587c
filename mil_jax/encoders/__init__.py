"""One instance -> one feature vector."""
