"""Stage `select`: picks the best of several checkpoints."""
