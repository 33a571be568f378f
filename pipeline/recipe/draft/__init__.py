"""`rlhf init`: a first recipe for data and a model that are looked at."""
