"""Stage `ppo`: reinforcement learning from the reward model's scores."""
