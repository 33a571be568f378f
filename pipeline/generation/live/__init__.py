"""Answers to people who wait for them: sampled as they ask, told as they are sampled."""
