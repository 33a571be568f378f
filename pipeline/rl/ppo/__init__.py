"""The PPO engine: pure maths, roll-out, and a loop that reads like the algorithm."""
