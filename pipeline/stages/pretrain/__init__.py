"""Stage `pretrain`: a base model from text."""
