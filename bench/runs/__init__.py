"""Whole runs, the list of all entries, and the commands that measure."""
