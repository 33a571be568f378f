"""Orders stages, skips what is done, resumes, launches processes, lists runs."""
