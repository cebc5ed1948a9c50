"""A small language model with random weights and the tokenizer of another: knows no word of it.

    python examples/english/random_language.py models/SmolLM2-135M-Instruct models/random

The control of a pretrained model: whatever it draws right, it did not know before.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of the language model")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    width = arguments.width
    torch.manual_seed(arguments.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=arguments.layers, num_attention_heads=width // 32,
            num_key_value_heads=width // 64, max_position_embeddings=2048,
            tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{arguments.output}: {millions:.1f} million random weights")
