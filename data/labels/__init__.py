"""Collecting preference labels from people: the store, the web pages and what comes out."""
