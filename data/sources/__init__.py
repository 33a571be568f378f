"""Reads rows from files, hub data sets and the built-in world, as records."""
