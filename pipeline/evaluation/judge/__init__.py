"""Judges checkpoints: samples, scores, win rates, perplexity, diversity."""
