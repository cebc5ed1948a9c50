"""The mark of constants in graphs is PyTorch's own."""

import torch

from metamorph_kernels.absence import triton_absence
from metamorph_kernels.graphs import constant_in_graphs


def test_the_mark_is_the_one_that_pytorch_sets():
    def ours():
        return 1

    def theirs():
        return 1

    assert constant_in_graphs(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(theirs)) != {}
    assert vars(triton_absence) == vars(theirs)
