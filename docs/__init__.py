"""Documents, and what writes their tables."""
