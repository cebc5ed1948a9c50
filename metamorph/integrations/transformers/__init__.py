"""MetaMorph folders in Hugging Face transformers, under the names of its Auto classes."""
