"""The toy world: scenes of shapes, the tasks made of them, a tokenizer of its words."""
