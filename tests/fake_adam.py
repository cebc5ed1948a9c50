"""Stand-in of `fake_libraries` for the Adam of apex; that of Transformer Engine is made from it."""

import torch
from torch import Tensor

from tests.fake_attention import CALLS


class FusedAdam(torch.optim.Optimizer):
    """One step count a group, none a parameter; `zero_grad` takes no argument."""

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8,
        adam_w_mode=True, weight_decay=0.0, amsgrad=False, set_grad_none=True,
        capturable=False, use_master=False,
    ):  # fmt: skip
        CALLS.append("FusedAdam")
        assert adam_w_mode and not amsgrad
        options = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, options | {"weight_decay": weight_decay})

    def zero_grad(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(
        self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None,
        grad_scaler=None,
    ):  # fmt: skip
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** group["step"])
        square = state["exp_avg_sq"] / (1 - beta2 ** group["step"])
        update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.sub_(group["lr"] * update)
