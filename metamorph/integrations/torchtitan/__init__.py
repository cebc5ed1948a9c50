"""MetaMorph as a module of torchtitan, whose trainer then runs it: docs/scaling.md."""
