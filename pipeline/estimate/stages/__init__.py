"""One estimate for each kind of stage."""
