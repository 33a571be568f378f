"""Rewards without weights: rules, the user's functions, HTTP servers."""
