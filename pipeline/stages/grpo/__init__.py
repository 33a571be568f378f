"""Stage `grpo`: trains a policy against a reward, an answer beside others to the same prompt."""
