"""What the CUDA ops should compute, in float64; inputs for them; and how close they must come."""

import torch
import torch.nn.functional as F

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY = torch.finfo(torch.float32).tiny
HUGE = torch.finfo(torch.float32).max
LARGEST_FP8 = 448.0


def random_rows(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """[rows, columns] on the CPU; the first rows are zeros, 1e4 long, too short, and too long."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    values += 0.3 * torch.linspace(-1, 1, columns, dtype=torch.float64)
    for row, scale in enumerate((0.0, 1e4, 1e-30, 1e30)[:rows]):
        values[row] *= scale
    if dtype == torch.float16:
        values.clamp_(-6e4, 6e4)
    return values.to(dtype)


def embedded(values: torch.Tensor, offset: int, gap: int) -> torch.Tensor:
    """The same rows inside a larger tensor of NaN: `offset` elements in, `gap` between rows."""
    *outer, rows, columns = values.shape
    count = rows * (columns + gap)
    memory = torch.full(
        (*outer, count + offset), float("nan"), dtype=values.dtype, device=values.device
    )
    view = memory[..., offset:].unflatten(-1, (rows, columns + gap))[..., :columns]
    view.copy_(values)
    return view


def _unit(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows and inverse norms; 0 where the squares are too small or large for float32."""
    squares = (rows * rows).sum(-1, keepdim=True)
    inverse = torch.where((squares >= TINY) & (squares <= HUGE), squares.rsqrt(), 0)
    return rows * inverse, inverse


def gradient_dtype(prediction: torch.Tensor) -> torch.dtype:
    return torch.float32 if prediction.dtype == torch.float16 else prediction.dtype


def assert_cosine_rows(losses, gradient, prediction, target, index=None, *, mean=False) -> None:
    """`losses` [N] and `gradient` [N, C], or None, are those of the rows, NaN where they are.

    With `mean` the gradient is divided by the rows whose index is not negative.
    """
    truth = prediction.double(), target.double()
    unit_prediction, inverse = _unit(truth[0])
    unit_target, _ = _unit(truth[1])
    if index is None:
        index = torch.arange(len(prediction), device=prediction.device)
    unit_target = unit_target[index.clamp(0, max(len(target) - 1, 0))]
    cosine = (unit_prediction * unit_target).sum(-1, keepdim=True)
    none, absent = index < 0, index >= len(target)
    expected = torch.where(none, 0, 1 - cosine[:, 0]).masked_fill(absent, float("nan"))
    assert losses.dtype == torch.float32 and losses.shape == expected.shape
    torch.testing.assert_close(losses.double(), expected, rtol=0, atol=2e-6, equal_nan=True)
    if gradient is None:
        return
    if mean:
        inverse = inverse / (index >= 0).sum().clamp(min=1)
    slope = (cosine * unit_prediction - unit_target) * inverse
    slope = torch.where(none[:, None], 0, slope).masked_fill(absent[:, None], float("nan"))
    assert gradient.dtype == gradient_dtype(prediction) and gradient.shape == prediction.shape
    limits = torch.finfo(gradient.dtype)
    allowed = limits.eps * slope.abs() + 2e-6 * inverse + limits.smallest_normal * limits.eps
    wrong = (gradient.double() - slope).abs() > allowed
    assert not wrong.any(), (gradient.double() - slope).abs().max()
    assert torch.equal(gradient.isnan(), slope.isnan())


def assert_pooled(pooled, features, grid: int) -> None:
    """`pooled` [B, grid * grid, C] is the normalised resize of features [B, N, C]."""
    side = round(features.shape[1] ** 0.5)
    image = features.double().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = F.interpolate(image, size=(grid, grid), mode="bilinear", align_corners=False)
    expected, _ = _unit(resized.flatten(2).mT)
    assert pooled.dtype == features.dtype and pooled.shape == expected.shape
    eps = torch.finfo(features.dtype).eps
    torch.testing.assert_close(pooled.double(), expected, rtol=eps, atol=max(2e-6, eps / 64))


def assert_quantised(values, scales, x, *, gelu: bool) -> None:
    """`values` and `scales` hold finite rows x, or their GELU, within half a step of float8."""
    exact = F.gelu(x.double()) if gelu else x.double()
    expected = (exact.abs().amax(-1) / LARGEST_FP8).float()
    expected = expected.masked_fill(expected == 0, 1)
    assert values.dtype == torch.float8_e4m3fn and values.shape == x.shape
    assert scales.dtype == torch.float32
    torch.testing.assert_close(scales, expected, rtol=1e-6, atol=0)
    step = torch.maximum(exact.abs() * 2**-4, scales.double()[:, None] * 2**-10)
    error = (values.double() * scales.double()[:, None] - exact).abs()
    assert (error <= 1.0001 * step).all(), (error / step).max()
