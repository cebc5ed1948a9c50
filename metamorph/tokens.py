"""The names of the special tokens, Llama-3's and ours, and the placeholder of an image in text."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"
IMAGE_START = "<image_start>"
IMAGE_END = "<image_end>"
IMAGE_PLACEHOLDER = "<image>"  # in written conversations; never a token
