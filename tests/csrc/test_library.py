"""What nvcc makes of csrc/, and how the library behaves in a PyTorch without a GPU."""

import json
import re
import subprocess
import sys

import pytest

KERNELS = {
    "cosine_rows_kernel": 18,
    "pool_normalize_kernel": 6,
    "quantise_rows_kernel": 6,
    "scale_kernel": 3,
}

# In a process of its own: PyTorch takes one library of a name, and never lets go of it.
ON_CPU = """
import json, sys
from pathlib import Path
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from metamorph_kernels import cuda_library

cuda_library.LIBRARY = Path(sys.argv[1])
absence = [cuda_library.cuda_absence(device) for device in ("cpu", "cuda")]
x = torch.ones(4, 6)
ops = torch.ops.metamorph_ops
schemas = [str(op.default._schema) for op in (ops.cosine_rows, ops.scale_)]

def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

errors = [
    message(ops.cosine_rows, x, x, None, True, False, None),
    message(ops.pool_normalize, x[None], 1),
    message(ops.quantise_rows, x, False),
    message(ops.scale_, x, x.sum()),
    message(cuda_library.quantise_rows, x),
]

cuda_library.gpu_absence = lambda device, oldest: None
with FakeTensorMode():
    x = torch.empty_strided((6, 4), (9, 1), dtype=torch.bfloat16, device="cuda")
    target = torch.empty(2, 4, device="cuda")
    index = torch.empty(6, dtype=torch.int64, device="cuda")
    results = [
        *cuda_library.cosine_rows(x, target, index, with_gradient=True),
        *cuda_library.cosine_rows(x, x, with_gradient=False),
        *cuda_library.cosine_rows(x.half(), x, index, with_gradient=True, mean=True),
        cuda_library.pool_normalize_rows(torch.empty(2, 9, 5, device="cuda"), 2),
        *cuda_library.quantise_rows(x, gelu=True),
    ]
fakes = [[str(fake.dtype), str(fake.device), fake.shape, fake.stride()] for fake in results]

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return lambda *values: [values[0]]

@torch.compile(backend=backend, fullgraph=True)
def compiled(x, index):
    losses, gradient = cuda_library.cosine_rows(x, x, index, with_gradient=True, mean=True)
    cuda_library.scale_in_place(gradient, losses.sum())
    return cuda_library.quantise_rows(gradient)[1] + 1

compiled(torch.ones(3, 5), torch.arange(3))
print(json.dumps([schemas, absence, errors, fakes, len(graphs)]))
"""


@pytest.mark.slow
def test_no_kernel_spills(built_library):
    found = re.findall(
        rf"Compiling entry function '\w*({'|'.join(KERNELS)})I\w+' for '(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        built_library.report,
        re.DOTALL,
    )
    names = [name for name, *_ in found]
    assert {name: names.count(name) for name in set(names)} == KERNELS
    for name, architecture, *bytes_spilled, registers in found:
        assert architecture == "sm_90a"
        assert bytes_spilled == ["0", "0", "0"], (name, bytes_spilled)
        assert int(registers) <= 128  # so that a team may be 512 threads


@pytest.mark.slow
def test_needs_only_the_stable_abi(built_library):
    symbols = _lines("nm", "-D", "--undefined-only", built_library.path)
    names = {line.split()[-1] for line in symbols}
    torch_names = {name for name in names if "torch" in name or "c10" in name}
    assert "torch_library_impl" in torch_names
    assert not [name for name in torch_names if not re.match(r"(aoti_)?torch_\w+$", name)]
    assert not [name for name in names if re.match(r"_ZNK?(2at|3c10|5torch)", name)]
    assert not [name for name in names if re.match(r"(cuda|cu)[A-Z]", name)]
    needed = [line for line in _lines("readelf", "-d", built_library.path) if "NEEDED" in line]
    libraries = set(re.findall(r"\[(\w+)\.so", "\n".join(needed)))
    assert libraries & {"libtorch", "libcudart", "libcuda", "libc10"} == {"libtorch"}


@pytest.mark.slow
def test_in_a_pytorch_without_gpu(built_library):
    done = subprocess.run(
        [sys.executable, "-c", ON_CPU, built_library.path],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    schemas, absence, errors, fakes, graphs = json.loads(done.stdout)
    assert schemas == [
        "metamorph_ops::cosine_rows(Tensor prediction, Tensor target, Tensor? target_index, "
        "bool with_gradient, bool mean, Tensor? count) -> (Tensor, Tensor)",
        "metamorph_ops::scale_(Tensor(a!) values, Tensor factor) -> ()",
    ]
    assert absence == ["no kernels for cpu devices", "torch sees no CUDA device"]
    assert errors == [
        "RuntimeError: prediction: expected a tensor on a CUDA device",
        "RuntimeError: features: expected a tensor on a CUDA device",
        "RuntimeError: x: expected a tensor on a CUDA device",
        "RuntimeError: values: expected a tensor on a CUDA device",
        "ValueError: the CUDA library cannot run here: no kernels for cpu devices",
    ]
    half, single, device = "torch.bfloat16", "torch.float32", "cuda:0"
    assert fakes == [
        [single, device, [6], [1]],
        [half, device, [6, 4], [4, 1]],
        [single, device, [6], [1]],
        [half, device, [0], [1]],
        [single, device, [6], [1]],
        [single, device, [6, 4], [4, 1]],
        [single, device, [2, 4, 5], [20, 5, 1]],
        ["torch.float8_e4m3fn", device, [6, 4], [4, 1]],
        [single, device, [6], [1]],
    ]
    assert graphs == 1


def _lines(*command) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
