"""Sheets of pictures that show what a model draws."""
