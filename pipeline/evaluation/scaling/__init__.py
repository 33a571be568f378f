"""Scaling laws: how the loss falls with parameters and tokens, and what to train for a budget."""
