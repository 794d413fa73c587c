"""The run folder: what it holds, and its files."""
