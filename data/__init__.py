"""Records, sources, chat templates, packing and the built-in world."""
