"""Attention: under interval masks in 16 and 8 bits, and of one query a sequence over a cache."""
