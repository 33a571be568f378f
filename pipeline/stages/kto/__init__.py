"""Stage `kto`: trains a policy on answers that are desirable or not."""
