"""What a recipe would cost on given accelerators: memory, FLOPs and hours, before anything runs."""
