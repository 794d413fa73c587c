"""What the commands share: the console, progress, the session around a run, the overview before it."""
