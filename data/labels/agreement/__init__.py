"""How far annotators agree, and what that leaves for a reward model to reach."""
