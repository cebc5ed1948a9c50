"""Matrix products that add up in float32 or wider, and on a GPU multiply in half precision."""

import torch
from torch import Tensor

from metamorph_kernels.arguments import without_autocast


def wide_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b in float32 or wider; where b is in half precision, the GPU multiplies in it."""
    with without_autocast(b):
        if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32, out=out)
        wide = torch.promote_types(b.dtype, torch.float32)
        return torch.mm(a.to(wide), b.to(wide), out=out)


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in place, in the float32 or wider of `total`; without one, what begins it."""
    if total is None:
        return wide_product(a, b)
    with without_autocast(b):
        if b.is_cuda and b.dtype in (torch.bfloat16, torch.float16):
            return torch.addmm(total, a.to(b.dtype), b, out_dtype=torch.float32, out=total)
        return total.addmm_(a.to(total.dtype), b.to(total.dtype))
