"""Tables of answers and what was said of them, plain ones and those that other tools write."""
