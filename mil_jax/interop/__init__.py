"""Foreign formats: feature folders of other pipelines, and PyTorch checkpoints both ways."""
