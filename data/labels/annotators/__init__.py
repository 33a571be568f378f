"""Annotators that are no people: they take tasks from the queue and submit labels as people do."""
