"""The whole job at toy size: train, answer, draw, report."""
