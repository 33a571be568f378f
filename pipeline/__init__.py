"""Chains the stages, and holds the ones that train or judge a policy."""
