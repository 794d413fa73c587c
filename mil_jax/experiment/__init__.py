"""From a config to data, targets, phases and plan, and through the engine to a run."""
