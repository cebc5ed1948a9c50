"""Of every op in Triton one gradient is right by every way; what goes beyond is refused by name."""

import pytest
import torch

from metamorph_kernels import backends
from tests.kernels.conftest import INTERPRETED
from tests.kernels.every_op.calls import CALLS
from tests.kernels.every_op.table import (
    NO_BACKWARD,
    check_first_gradients,
    check_refused,
)

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="its tensors are on the CPU")
IN_TRITON = [call for call in CALLS if "triton" in backends.IMPLEMENTED[call.operation]]


@pytest.mark.parametrize("call", IN_TRITON, ids=lambda call: call.operation)
def test_first_gradients_are_the_same_by_every_way(call):
    if call.operation in NO_BACKWARD:
        check_refused(call, "triton", torch.float32, "penalty")
    else:
        check_first_gradients(call, "triton", torch.float32, most=1)


@pytest.mark.parametrize("how", ["penalty", "vmap", "jvp", "jacrev"])
@pytest.mark.parametrize("call", IN_TRITON, ids=lambda call: call.operation)
def test_the_rest_is_refused_by_name(call, how):
    check_refused(call, "triton", torch.float32, how)
