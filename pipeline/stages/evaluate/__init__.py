"""Stage `evaluate`: judges checkpoints on held-out prompts."""
