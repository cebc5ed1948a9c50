import torch

from bench.harness.providers import gpu_package

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_probe_names_what_is_missing():
    probe = gpu_package("no_such_package.inner")
    assert probe(CPU) == "needs a GPU"
    assert probe(CUDA) == "not installed"
    assert gpu_package("torch.no_such_module")(CUDA).startswith("ModuleNotFoundError: ")
    # As flash_attn is importable where FlashAttention 4 alone is installed.
    missing = gpu_package("torch", "no_such_function")(CUDA)
    assert missing.startswith("AttributeError: ") and missing.endswith("'no_such_function'")
    assert gpu_package("torch", "softmax")(CUDA) is None
