"""A campaign: its tasks, who works on them, which comes next, and what is recorded."""
