"""Retrieval: passages of a corpus by the words of a query (BM25)."""
