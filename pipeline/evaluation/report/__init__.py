"""The report of a run: what is collected, shown and drawn."""
