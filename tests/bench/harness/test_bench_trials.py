import pytest
import torch

from bench.harness.trials import Inputs, largest_error


@pytest.mark.parametrize("shape", [(), (5,), (70, 4), (2, 35, 4)])
def test_a_result_of_any_shape_is_judged_and_a_nan_is_never_right(shape):
    exact = (torch.ones(3, 2), torch.ones(shape), torch.ones(()))
    assert largest_error(exact, exact) == 0
    for number in (1.5, float("nan")):
        wrong = torch.ones(shape)
        wrong.view(-1)[-1] = number
        assert not largest_error((exact[0], wrong, exact[2]), exact) <= 0.02


def test_inputs_in_float64_are_the_same_numbers():
    inputs = Inputs((torch.randn(3, 2, requires_grad=True),), (torch.arange(3), torch.rand(3)))
    double = inputs.double()
    assert double.leaves[0].requires_grad and double.leaves[0].dtype == torch.float64
    assert [constant.dtype for constant in double.constants] == [torch.int64, torch.float64]
    assert torch.equal(double.leaves[0], inputs.leaves[0].double())
