"""Tars that lie elsewhere: found by address, fetched when their turn comes, kept within a limit."""
