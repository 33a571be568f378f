"""Whatever scores a response."""
