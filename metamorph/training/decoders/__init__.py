"""What each kind of decoder is taught by."""
