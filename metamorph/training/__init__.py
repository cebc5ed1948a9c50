"""Training: one loop for the language, align and instruct stages."""
