"""Stage `rankings`: completions, ranked by people, a file or the built-in world."""
