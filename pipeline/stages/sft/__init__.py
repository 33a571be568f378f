"""Stage `sft`: teaches a base model to answer, from demonstrations."""
