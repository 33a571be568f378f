"""Recipes: YAML to checked settings."""
