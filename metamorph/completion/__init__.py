"""Tab completion: three small scripts of shells, which ask the program what may come next."""
