"""How checkpoints are judged, and the report."""
