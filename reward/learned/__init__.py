"""The reward model that is trained on rankings."""
