"""Losses: cosine, the last layer with it, and a cross-entropy in chunks of logits."""
