"""From files or seeds to packed rows: conversations, images, sources, packing."""
