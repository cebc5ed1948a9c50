"""Pictures that are tensors, as the encoder takes them, so that a gradient reaches their pixels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamorph.model.vision import VisionEncoder


class DrawnPixels(nn.Module):
    """What `VisionEncoder.preprocess` makes of square pictures of `side` pixels, of tensors.

    Pillow resizes by two products with a matrix, over columns and over rows; here they are products
    with the same matrix, which are differentiable and run where the tensors are.
    """

    resizing: Tensor  # [S, side]
    mean: Tensor  # [3, 1, 1], as `std`
    std: Tensor

    def __init__(self, vision: VisionEncoder, side: int):
        super().__init__()
        matrix = resizing(side, vision.image_size, vision.square.resample)
        self.register_buffer("resizing", matrix, persistent=False)
        self.register_buffer("mean", torch.tensor(vision.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(vision.std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixel values [B, 3, S, S] of pictures [B, 3, side, side] in 0..1, in the dtype of the
        buffers, fp32 unless they were cast.

        What is beyond 0..1 is cut off, as where it is shown, and gets no gradient.
        """
        with torch.autocast(pixels.device.type, enabled=False):  # bf16 has 8 bits: pixels need more
            shown = pixels.to(self.resizing.dtype).clamp(0, 1)
            columns = (shown @ self.resizing.T).clamp(0, 1)
            return ((self.resizing @ columns).clamp(0, 1) - self.mean) / self.std


def resizing(side: int, to: int, resample: Image.Resampling) -> Tensor:
    """The matrix [to, side] by which Pillow resizes a column of pixels."""
    impulses = Image.fromarray(np.eye(side, dtype=np.float32))  # a pixel that is 1 in each row
    return torch.from_numpy(np.array(impulses.resize((to, side), resample))).T.contiguous()
