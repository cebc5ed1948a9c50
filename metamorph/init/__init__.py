"""A commented run file, proposed for somebody's own data and models."""
