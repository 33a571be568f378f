"""Stage `evaluate`: judges checkpoints on the same prompts."""
