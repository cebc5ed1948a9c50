"""Linear layers whose matrix products are float8, forward and backward, for training."""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import metamorph_kernels.float8 as float8
from metamorph_kernels.arguments import check_shape, same_dtype
from metamorph_kernels.backends import resolve
from metamorph_kernels.float8 import ALIGNMENT, E4M3, E5M2
from metamorph_kernels.transforms import OnceOnly

WIDEST_ROW = 16_384  # what one program of the Triton kernel holds in registers


def linear_fp8(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto"
) -> Tensor:
    """x weight^T + bias with float8 products: a linear layer for training on Hopper.

    x [..., I], weight [O, I], bias [O] or None in one of float32, bfloat16, float16, or under
    autocast. Returns [..., O] in that dtype. Differentiable in all three.

    Rows of x and of weight are rounded to float8_e4m3fn with one float32 scale each, the row's
    largest magnitude / 448, or 1 for a row of zeros; a row that holds a NaN or an infinity becomes
    NaN throughout. The sum of products is float32; times both scales, plus bias, it is rounded
    once. The gradient treats those roundings as the identity. Its own products are float8 too,
    each operand with scales along the dimension that stays: the output's gradient in float8_e5m2
    (/ 57344), weight and x in float8_e4m3fn again. The bias has a float32 sum. On normal data the
    error is 2.6% of y and 5.9% of the gradients of x and weight, as roots of mean squares.

    Keeps x for the gradient of weight and weight for that of x, in their own dtype; what is frozen
    takes no product and keeps nothing.

    Triton takes I and O in multiples of 16 up to 16,384. PyTorch has float8 products on GPUs of
    capability 8.9 or newer, for bfloat16 with I and O in multiples of 16; elsewhere it emulates
    them in float32: it shows what to expect and saves nothing.

    Raises ValueError for shapes, dtypes or devices that do not fit, for float64, and for an `impl`
    that cannot run this call.
    """
    [y] = _layers(x, {"weight": weight}, {"bias": bias}, impl)
    return y


def linears_fp8(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, ...]:
    """`linear_fp8` of one x by several layers, such as q, k and v, or gate and up: x is rounded
    once for all, by rows in the forward and by columns in the backward.

    x [..., I], weights [O, I] and biases [O] with an O of each layer; a bias may be None, and
    `biases` for all. Returns [..., O] of each layer. They, and the gradients of weights and biases,
    have the bits of `linear_fp8`; the gradient of x is the sum of the layers', in its dtype.

    Raises ValueError as `linear_fp8` does, and unless there is a bias or None for each weight.
    """
    biases = [None] * len(weights) if biases is None else biases
    if not weights:
        raise ValueError("weights: expected one or more, got none")
    if len(biases) != len(weights):
        raise ValueError(
            f"biases: expected {len(weights)}, one or None for each weight, got {len(biases)}"
        )
    return _layers(
        x,
        {f"weights[{layer}]": weight for layer, weight in enumerate(weights)},
        {f"biases[{layer}]": bias for layer, bias in enumerate(biases)},
        impl,
    )


def _layers(
    x: Tensor, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor | None], impl: str
) -> tuple[Tensor, ...]:
    """`linears_fp8`; the arguments are known by their names."""
    given = {name: bias for name, bias in biases.items() if bias is not None}
    names = [*weights, *given]
    x, *tensors = same_dtype(x=x, **weights, **given)
    layers = dict(zip(names, tensors, strict=True))
    limits = []
    for weight, bias in zip(weights, biases, strict=True):
        _check_layer(x, **{name: layers[name] for name in (weight, bias) if name in layers})
        outputs, inputs = layers[weight].shape
        limits.append(_triton_limit(I=inputs, O=outputs))
    backend = resolve("linear_fp8", impl, x, next(filter(None, limits), None))

    def linears(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        layers = dict(zip(names, tensors, strict=True))
        of_weights, of_biases = map(layers.get, weights), map(layers.get, biases)
        results = _linears(_as_rows(x), False, backend, *of_weights, *of_biases)
        return tuple(rows.view(*x.shape[:-1], rows.shape[1]) for rows in results)

    once_only = OnceOnly("linear_fp8", "use torch.nn.functional.linear", levels_in_graphs=0)
    return once_only(linears, x, *tensors)


def mlp_gelu_fp8(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, impl: str = "auto"
) -> Tensor:
    """gelu(x w1^T + b1) w2^T + b2: two `linear_fp8` with the exact (erf) GELU between them.

    x [..., I], w1 [F, I], b1 [F], w2 [O, F], b2 [O] in one of float32, bfloat16, float16, or under
    autocast. Returns [..., O] in that dtype. Differentiable in all five. Limits of a backend are
    those of `linear_fp8`, for F too.

    GELU and rounding to float8 are one pass, so the activation exists in float8 alone. Kept are x
    and z = x w1^T + b1 in their dtype, which is the least: the gradient of GELU needs z, and the
    activation, which that of w2 wants rounded by columns, is recomputed from it.

    Raises ValueError as `linear_fp8` does.
    """
    x, w1, b1, w2, b2 = same_dtype(x=x, w1=w1, b1=b1, w2=w2, b2=b2)
    _check_layer(x, w1=w1, b1=b1)
    hidden = len(w1)
    check_shape("w2", w2, "O, F", None, hidden)
    outputs = len(w2)
    check_shape("b2", b2, "O", outputs)
    backend = resolve("mlp_gelu_fp8", impl, x, _triton_limit(I=w1.shape[1], F=hidden, O=outputs))

    def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor]:
        [z] = _linears(_as_rows(x), False, backend, w1, b1)
        [rows] = _linears(z, True, backend, w2, b2)
        return (rows.view(*x.shape[:-1], outputs),)

    once_only = OnceOnly("mlp_gelu_fp8", "use mlp_gelu with impl='torch'", levels_in_graphs=0)
    [result] = once_only(mlp, x, w1, b1, w2, b2)
    return result


def _linears(x: Tensor, gelu: bool, backend: str, *layers: Tensor | None) -> tuple[Tensor, ...]:
    """`_Linears`, and its forward alone where nothing is differentiated: torch.compile takes the
    context for one of the arguments there, if their number may vary."""
    given = [tensor for tensor in (x, *layers) if tensor is not None]
    wants_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    function = _Linears.apply if wants_gradients else _Linears.forward
    return function(x, gelu, backend, *layers)


class _Linears(torch.autograd.Function):
    """`linear_fp8` of x [N, I], or of its GELU, by layers: all their weights, then all biases."""

    @staticmethod
    def forward(x, gelu, backend, *layers):
        f8 = _functions(backend)
        weights, biases = _halves(layers)
        rows = f8.quantise_rows(x, E4M3, gelu)
        return tuple(
            f8.scaled_product(*rows, *f8.quantise_rows(weight, E4M3), x.dtype, bias)
            for weight, bias in zip(weights, biases, strict=True)
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.gelu, ctx.backend, *layers = inputs
        wants_x, _, _, *wanted = ctx.needs_input_grad
        weights, _ = _halves(layers)
        wants_weights, wants_biases = _halves(wanted)
        frozen = [
            result
            for result, *wants in zip(output, wants_weights, wants_biases, strict=True)
            if not (wants_x or any(wants))
        ]
        ctx.mark_non_differentiable(*frozen)
        ctx.save_for_backward(
            x if any(wants_weights) or (ctx.gelu and wants_x) else None,
            *(weights if wants_x else [None] * len(weights)),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        x, *weights = ctx.saved_tensors
        wants_x, _, _, *wanted = ctx.needs_input_grad
        wants_weights, wants_biases = _halves(wanted)
        f8 = _functions(ctx.backend)
        x_gradient, of_weights, of_biases = None, [], []
        columns = f8.quantise_columns(x, E4M3, ctx.gelu) if any(wants_weights) else ()
        for gradient, weight, wants_weight, wants_bias in zip(
            gradients, weights, wants_weights, wants_biases, strict=True
        ):
            weight_gradient = bias_gradient = None
            if wants_x:
                product = f8.scaled_product(
                    *f8.quantise_rows(gradient, E5M2),
                    *f8.quantise_columns(weight, E4M3),
                    gradient.dtype,
                    before_gelu=x if ctx.gelu else None,
                )
                x_gradient = product if x_gradient is None else x_gradient + product
            if wants_weight:
                weight_gradient = f8.scaled_product(
                    *f8.quantise_columns(gradient, E5M2), *columns, gradient.dtype
                )
            if wants_bias:
                bias_gradient = gradient.sum(0, dtype=torch.float32).to(gradient.dtype)
            of_weights.append(weight_gradient)
            of_biases.append(bias_gradient)
        return x_gradient, None, None, *of_weights, *of_biases


def _halves(values: Sequence) -> tuple[Sequence, Sequence]:
    """Those of weights and those of biases."""
    return values[: len(values) // 2], values[len(values) // 2 :]


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _functions(backend: str) -> ModuleType:
    if backend == "torch":
        return float8
    import metamorph_kernels.linear.float8_triton as float8_triton

    return float8_triton


def _check_layer(x: Tensor, **layer: Tensor) -> None:
    """Raise ValueError unless `layer`, a weight [O, I] and perhaps a bias [O], fits x [..., I]."""
    (name, weight), *bias = layer.items()
    if x.dtype == torch.float64:
        raise ValueError("x: expected float32, bfloat16 or float16, got torch.float64")
    check_shape(name, weight, "O, I", None, None)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x: expected shape [..., I] = [..., {weight.shape[1]}], got {list(x.shape)}"
        )
    for bias_name, values in bias:
        check_shape(bias_name, values, "O", len(weight))


def _triton_limit(**sizes: int) -> str | None:
    """What of layers of these sizes the Triton kernels cannot do, or None."""
    for name, size in sizes.items():
        if size == 0 or size % ALIGNMENT != 0 or size > WIDEST_ROW:
            return f"multiples of {ALIGNMENT} up to {WIDEST_ROW} only, got {size} along {name}"
    return None
