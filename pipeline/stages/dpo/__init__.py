"""Stage `dpo`: trains a policy on preferences, without a reward model."""
