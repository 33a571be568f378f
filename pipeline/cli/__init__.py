"""What the user types: the `rlhf` command."""
