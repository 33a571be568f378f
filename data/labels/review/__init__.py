"""Looking at labels, and an admin's word in place of them."""
