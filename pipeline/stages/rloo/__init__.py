"""Stage `rloo`: trains a policy against a reward, by REINFORCE with the other answers' mean."""
