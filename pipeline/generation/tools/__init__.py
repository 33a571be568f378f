"""What a model may call while it writes: each tool is a text in and a text out."""
