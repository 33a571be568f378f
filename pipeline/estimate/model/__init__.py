"""What a model and a machine cost: shapes, FLOPs, memory, hardware."""
