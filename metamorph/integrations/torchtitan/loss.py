"""The loss as torchtitan asks for it; the model has computed it."""

from dataclasses import dataclass

from torch import Tensor
from torchtitan.components.loss import BaseLoss


class ShareOfLoss(BaseLoss):
    """Passes on what the model returns: its row's share of the means over all targets of a step.

    torchtitan divides one sum by one number of tokens; text and visual targets have each their own,
    and the language model's heads need their weights gathered (`PackedRowModel`).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Config, *, compile_config=None):
        pass

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`pred`, the loss of a row, and no metrics beside it."""
        return pred, {}
