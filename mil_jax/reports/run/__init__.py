"""The report of a run: its summary, statements, leak report."""
