"""Loads models and tokenizers, and asks them what they can."""
