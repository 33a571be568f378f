"""Samples from a causal language model: the own decoder, and a vLLM server."""
