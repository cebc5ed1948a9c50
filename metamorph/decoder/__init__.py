"""Visual features to pixels: the adapter and the diffusion pipeline, for inference."""
