"""What times, verifies and records, whatever is measured. Imports no other room."""
