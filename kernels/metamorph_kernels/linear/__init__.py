"""Linear layers: the exact-GELU MLP, and products in float8."""
