"""What a model is trained for: batches and losses."""
