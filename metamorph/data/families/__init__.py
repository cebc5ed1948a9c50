"""What conversation a record stands for: a function for each family of data."""
