"""Samples episodes, in this process or by a vLLM server."""
