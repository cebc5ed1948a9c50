"""Training: one loop for every stage, and what its steps are made of."""
