"""Stage `tokenizer`: learns byte-pair encoding, or adopts a tokenizer."""
