"""What people look at: tables, statistics, curves and the summary of a run."""
