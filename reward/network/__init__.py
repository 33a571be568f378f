"""The network under a reward model: loading, LoRA, attention within trees."""
