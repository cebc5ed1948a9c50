import pytest
import torch

from metamorph_kernels import linear_cross_entropy, reference
from metamorph_kernels.losses import chunks, cross_entropy, cross_entropy_triton
from tests.kernels.comparisons import Record, value_and_gradients
from tests.kernels.conftest import INTERPRETED

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.bfloat16, torch.float16)
OPERATORS = torch.ops.metamorph_kernels
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [(1, 8, 1), (7, 16, 11), (5, 8, 130), (3, 8, 1000), (0, 8, 33)]  # N, H, V
if not INTERPRETED:
    SHAPES += [(513, 256, 32_002), (64, 1024, 128_258)]

pytestmark = [
    pytest.mark.usefixtures("poisoned", "blocks"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy, of infinities
]


@pytest.fixture
def blocks(monkeypatch):
    """Rows of several blocks, and several chunks of rows, those of gradients the longer ones."""
    if INTERPRETED:
        monkeypatch.setattr(cross_entropy_triton, "BLOCK", 64)
        monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 512)
        monkeypatch.setattr(chunks, "GRADIENT_BYTES_AT_ONCE", 4096)


def inputs(rows, width, classes, dtype, device, seed=0):
    """x [N, H], weight [V, H], and labels [N], every third of which is ignored."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    weight = torch.randn(classes, width, generator=generator) / width**0.5
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[2::3] = -100
    return x.to(device, dtype), weight.to(device, dtype), labels.to(device)


def ours(x, weight, labels, **options):
    return linear_cross_entropy(x, weight, labels, impl="triton", **options)


def assert_near_float64(x, weight, labels, **options):
    actual, truth = (
        value_and_gradients(lambda x, w, f=f: f(x, w, labels, **options), *tensors)
        for f, tensors in (
            (ours, (x, weight)),
            (reference.linear_cross_entropy, (x.double(), weight.double())),
        )
    )
    assert actual[0].dtype == torch.float32 and actual[1].dtype == x.dtype
    for value, true in zip(actual, truth, strict=True):
        size = max(1.0, true.abs().max().item()) if true.numel() else 1.0
        torch.testing.assert_close(
            value.double(), true, rtol=0, atol=TOLERANCE[x.dtype] * size, check_device=False
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_against_float64(device, shape, dtype, reduction):
    assert_near_float64(*inputs(*shape, dtype, device), reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(
    ("label_smoothing", "z_loss"), [(0.1, 0.0), (1.0, 0.0), (0.0, 0.3), (0.2, 0.01)]
)
def test_label_smoothing_and_z_loss(device, reduction, label_smoothing, z_loss):
    tensors = inputs(7, 16, 130, DTYPES[0], device)
    assert_near_float64(
        *tensors, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss
    )


@pytest.mark.parametrize("size", [1e-3, 300.0])
def test_logits_of_every_size(device, size):
    x, weight, labels = inputs(7, 16, 130, torch.float32, device)
    assert_near_float64(x * size, weight, labels, reduction="sum")


def of_logits(logits, labels, smoothing=0.0):
    """Losses and gradients of given logits [N, V], V a multiple of 16."""
    unit = torch.eye(logits.shape[1], device=logits.device)
    ones = torch.ones(len(logits), device=logits.device)
    losses, gradient = OPERATORS.linear_cross_entropy_rows(
        logits, unit, labels, ones, smoothing, 0.0
    )
    return losses, gradient[:, : logits.shape[1]]


def test_a_class_without_probability_stays_without(device):
    logits = torch.zeros(2, 144, device=device)
    logits[0, :128] = logits[1, 64:] = -1e30  # in whole blocks
    labels = torch.tensor([129, 3], device=device)
    losses, gradient = of_logits(logits, labels)
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


NAN, INF = float("nan"), float("inf")
POISON = {  # places of the 130 columns and what stands there; blocks are of 64, lanes of 8
    "one NaN": ({70: NAN}, "all NaN"),
    "NaN first": ({0: NAN}, "all NaN"),
    "NaN last": ({129: NAN}, "all NaN"),
    "a lane of NaN": (dict.fromkeys([*range(8, 16), *range(72, 80)], NAN), "all NaN"),
    "NaN everywhere": (dict.fromkeys(range(130), NAN), "all NaN"),
    "NaN, the rest hidden": (dict.fromkeys(range(130), -INF) | {9: NAN}, "all NaN"),
    "one infinity": ({5: INF}, "all NaN"),
    "the label infinite": ({3: INF}, "all NaN"),
    "all hidden": (dict.fromkeys(range(130), -INF), "all NaN"),
    "most hidden": (dict.fromkeys(range(4, 130), -INF), "finite"),
    "a lane hidden": (dict.fromkeys([*range(8, 16), *range(72, 80)], -INF), "finite"),
    "the label hidden": ({3: -INF}, "infinite"),
}


@pytest.mark.usefixtures("either_maximum")
@pytest.mark.parametrize("case", POISON)
def test_numbers_that_are_none_show_as_in_pytorch(device, case):
    """Whether a maximum keeps NaN or drops it; rows beside them stay as they are."""
    places, kind = POISON[case]
    logits = torch.randn(3, 192, generator=torch.Generator().manual_seed(0)).to(device)
    logits[1, list(places)] = torch.tensor(list(places.values()), device=device)
    losses, gradient = torch.empty(3, device=device), torch.empty(3, 192, device=device)
    ones, labels = torch.ones(3, device=device), torch.full((3,), 3, device=device)
    cross_entropy_triton.cross_entropy[(3,)](
        logits, labels, ones, losses, gradient, 192, 192, 130, 0.0, 0.0, BLOCK=64
    )
    leaf = logits[:, :130].clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, labels, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach(), equal_nan=True)
    torch.testing.assert_close(gradient[:, :130], leaf.grad, equal_nan=True)
    loss = losses[1]
    assert {"finite": loss.isfinite(), "infinite": loss == INF, "all NaN": loss.isnan()}[kind]
    assert kind != "all NaN" or gradient[1, :130].isnan().all()


def test_a_label_that_is_no_class_shows(device):
    logits = torch.zeros(3, 48, device=device)
    labels = torch.tensor([48, -7, 47], device=device)
    losses, gradient = of_logits(logits, labels, smoothing=0.1)
    assert losses.isnan().tolist() == [True, True, False]
    assert gradient.isnan().all(1).tolist() == [True, True, False]


def test_gradients_are_aligned_and_in_the_dtype_of_x(device):
    """However many classes there are, a matrix product can read them 16 bytes at a time."""
    x, weight, labels = inputs(3, 16, 33, DTYPES[1], device)
    rows = cross_entropy._Rows(0.0, 0.0, "triton")
    _, gradient = rows.losses(x, weight, labels.clamp(min=0), torch.ones(3, device=device))
    assert gradient.shape == (3, 33) and gradient.dtype == x.dtype
    assert gradient.stride() == (cross_entropy_triton.ALIGNMENT, 1)


def test_without_gradients_none_is_written(device):
    x, weight, labels = inputs(31, 8, 64, DTYPES[0], device)
    expected = ours(x, weight.clone().requires_grad_(), labels)
    with Record() as record:
        loss = ours(x, weight, labels)
    assert torch.equal(loss, expected.detach()) and record.products == 0
    assert record.elements < 31 * 64  # no operator returned as much as the logits


@pytest.mark.parametrize(("wants_x", "wants_weight"), [(True, False), (False, True), (True, True)])
def test_multiplies_only_for_gradients_that_are_wanted(device, wants_x, wants_weight):
    x, weight, labels = inputs(15, 8, 64, torch.float32, device)
    x.requires_grad_(wants_x)
    weight.requires_grad_(wants_weight)
    with Record() as record:
        ours(x, weight, labels).backward()
    assert record.products == wants_x + wants_weight  # in one chunk
    assert (x.grad is not None) == wants_x and (weight.grad is not None) == wants_weight


def test_chunks_are_whole_tiles_of_a_product(monkeypatch):
    """Those of gradients longer than those of logits."""
    monkeypatch.undo()
    x, weight = torch.empty(3000, 1, dtype=torch.bfloat16), torch.empty(128_258, 1)
    parts = {
        "gradients": chunks.gradient_chunks(len(x), len(weight), x.element_size()),
        "logits": chunks.logit_chunks(3000, 128_258),
    }
    lengths = {name: [part.stop - part.start for part in parts[name]] for name in parts}
    assert lengths == {"gradients": [2048, 952], "logits": [512] * 5 + [440]}
    assert [part.stop for part in chunks.logit_chunks(2, 2**27)] == [1, 2]  # never none


def test_operator_checks(device):
    x, weight, labels = inputs(3, 16, 33, DTYPES[1], device)
    labels, ones = labels.clamp(min=0), torch.ones(3, device=device)
    operator = OPERATORS.linear_cross_entropy_rows.default
    torch.library.opcheck(operator, (x, weight, labels, None, 0.1, 0.0))
    x, weight, labels = inputs(3, 16, 64, DTYPES[1], device)  # every column is written
    torch.library.opcheck(operator, (x, weight, labels.clamp(min=0), ones, 0.1, 0.0))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_equals_eager(device, reduction):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, weight, labels = inputs(9, 16, 130, DTYPES[0], device)
    eager, traced = (
        value_and_gradients(lambda x, w, f=f: f(x, w, labels, reduction=reduction), x, weight)
        for f in (ours, compiled)
    )
    assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


def test_refuses_float64(device):
    x, weight, labels = inputs(3, 8, 5, torch.float64, device)
    with pytest.raises(ValueError, match="cannot run in Triton here: float64 runs in PyTorch only"):
        ours(x, weight, labels)
