"""Each op of ours beside its peers: what it is given, who computes it, what counts as right."""
