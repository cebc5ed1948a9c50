"""MetaMorph models inside other people's programs."""
