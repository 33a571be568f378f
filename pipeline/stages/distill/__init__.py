"""Stage `distill`: a small model that learns from a large one."""
