"""The quickstart on a pretrained language model, SmolLM2-135M-Instruct."""
