"""The changes, oldest first; a published one is never edited."""
