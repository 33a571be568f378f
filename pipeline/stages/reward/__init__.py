"""Stage `reward`: a reward model from rankings."""
