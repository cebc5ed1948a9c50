"""Optional libraries: why one of them cannot be used here, in one line for errors and the doctor.

None of them is a dependency. A probe imports its library only where the device is one that it can
run on; of apex so much as tells it from another package of that name.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder

import torch

from metamorph.errors import UserError
from metamorph_kernels import gpu_absence

AMPERE, ADA, HOPPER, BLACKWELL = (8, 0), (8, 9), (9, 0), (10, 0)  # compute capabilities
FLASH_ATTENTION = ("flash_attn_func", "flash_attn_varlen_func")


def flash_attn_absence(device_type: str) -> str | None:
    """Why flash-attn 2 cannot run on tensors of this device type, or None where it can."""
    if _flash_attn_4_alone():
        return "not installed (the package flash_attn here is flash-attn-4's)"
    return _absence(device_type, AMPERE, {"flash_attn": FLASH_ATTENTION})


def flash_attn_3_absence(device_type: str) -> str | None:
    """Why flash-attn 3 cannot run on tensors of this device type, or None where it can."""
    needed = {"flash_attn_interface": FLASH_ATTENTION}
    return _absence(device_type, HOPPER, needed, below=BLACKWELL)


def flash_attn_4_absence(device_type: str) -> str | None:
    """Why flash-attn 4 cannot run on tensors of this device type, or None where it can."""
    if not _has_flash_attn_cute():
        return "not installed"
    reason = _absence(device_type, HOPPER, {"flash_attn.cute": ["flash_attn_varlen_func"]})
    if reason is not None:
        return reason
    function = importlib.import_module("flash_attn.cute").flash_attn_varlen_func
    if {"max_seqlen_q", "deterministic"} <= set(inspect.signature(function).parameters):
        return None
    return (
        "the package flash_attn.cute here is an early one, which flash-attn 2.8 brings: install "
        "flash-attn-4 after it"
    )


def varlen_absence(device_type: str) -> str | None:
    """Why PyTorch's own attention of packed rows has no kernel for tensors of this device type."""
    return _absence(device_type, AMPERE, {"torch.nn.attention.varlen": ["varlen_attn"]})


def xformers_absence(device_type: str) -> str | None:
    """Why the attention of xformers cannot run on tensors of this device type, or None."""
    if installed("xformers") and _flash_attn_4_alone():
        return (
            "it takes the package flash_attn for that of flash-attn 2, but here it is "
            "flash-attn-4's; install flash-attn beside it, or uninstall flash-attn-4"
        )
    needed = {
        "xformers.ops": ["memory_efficient_attention"],
        "xformers.ops.fmha.attn_bias": ["BlockDiagonalCausalMask"],
        "xformers._cpp_lib": ["_cpp_library_load_exception", "_built_with_cuda"],
    }
    reason = _absence(device_type, AMPERE, needed)
    if reason is not None:
        return reason
    kernels = importlib.import_module("xformers._cpp_lib")
    # It warns, and goes on, where its kernels are of another PyTorch.
    if kernels._cpp_library_load_exception is not None:
        return first_line(kernels._cpp_library_load_exception)
    return None if kernels._built_with_cuda else "this build has no kernels for GPUs"


def liger_absence(device_type: str) -> str | None:
    """Why Liger-Kernel cannot run on tensors of this device type, or None where it can."""
    functions = ["LigerRMSNormFunction", "LigerRopeFunction", "LigerSiLUMulFunction"]
    return _absence(device_type, AMPERE, {"liger_kernel.ops": functions})


def apex_absence(device_type: str) -> str | None:
    """Why NVIDIA apex cannot run on tensors of this device type, or None where it can."""
    needed = {
        "apex.optimizers": ["FusedAdam"],
        "apex.normalization": ["FusedRMSNorm"],
        "apex.normalization.fused_layer_norm": ["fused_rms_norm_affine"],
    }
    reason = _apex_absence(device_type, needed)
    if reason is not None:
        return reason
    try:  # both raise where apex was built without its CUDA extensions
        importlib.import_module("apex.normalization").FusedRMSNorm(1)
        parameter = torch.nn.Parameter(torch.zeros(1, device=device_type))
        importlib.import_module("apex.optimizers").FusedAdam([parameter])
    except Exception as error:
        return first_line(error)
    return None


def apex_group_norm_absence(device_type: str) -> str | None:
    """Why NVIDIA apex has no group norm for tensors of this device type, or None where it has."""
    return _apex_absence(device_type, {"apex.contrib.group_norm": ["GroupNorm"]})


def torchao_absence(device_type: str) -> str | None:
    """Why torchao's float8 layers cannot run on tensors of this device type, or None."""
    needed = ["Float8LinearConfig", "convert_to_float8_training"]
    return _absence(device_type, ADA, {"torchao.float8": needed})


def torchao_optim_absence(device_type: str) -> str | None:
    """Why torchao's 8-bit AdamW cannot run on tensors of this device type, or None."""
    return _absence(device_type, None, {"torchao.optim": ["AdamW8bit"]})


def torchao_quantization_absence(device_type: str) -> str | None:
    """Why torchao's weights in 8 bits cannot be used on this device type, or None."""
    needed = ["quantize_", "Int8WeightOnlyConfig", "Float8WeightOnlyConfig"]
    return _absence(device_type, None, {"torchao.quantization": needed})


def peft_absence(device_type: str) -> str | None:
    """Why peft's adapters cannot be trained on this device type, or None."""
    return _absence(device_type, None, {"peft": ["LoraConfig", "inject_adapter_in_model"]})


def transformer_engine_absence(device_type: str) -> str | None:
    """Why Transformer Engine's float8 layers cannot run on tensors of this device type, or None."""
    needed = {
        "transformer_engine.pytorch": ["Linear", "autocast", "is_nvfp4_available"],
        "transformer_engine.pytorch.quantization": ["RecipeState"],
        "transformer_engine.common.recipe": ["Float8CurrentScaling", "NVFP4BlockScaling"],
    }
    return _absence(device_type, ADA, needed)


def torch_fidelity_absence(device_type: str) -> str | None:
    """Why torch-fidelity's Inception cannot be used for FID here, or None where it can."""
    module = "torch_fidelity.feature_extractor_inceptionv3"
    return _absence(device_type, None, {module: ["FeatureExtractorInceptionV3"]})


def gguf_absence(device_type: str) -> str | None:
    """Why the package gguf cannot decode tensors of GGUF files here, or None where it can."""
    needed = ["dequantize", "GGML_QUANT_SIZES", "GGMLQuantizationType"]
    return _absence(device_type, None, {"gguf": needed})


def lmms_eval_absence(device_type: str) -> str | None:
    """Why lmms-eval cannot evaluate MetaMorph models here, or None where it can."""
    needed = {
        "lmms_eval.api.model": ["lmms"],
        "lmms_eval.api.instance": ["GenerationResult", "TokenCounts"],
        "lmms_eval.models.registry_v2": ["ModelManifest"],
    }
    return _absence(device_type, None, needed)


ON_ANY_DEVICE = {  # distribution: what is needed of its modules
    "av": {"av": ["open", "FFmpegError"]},
    "pyarrow": {"pyarrow.parquet": ["ParquetFile"]},
    # `List` came with the version that stopped running code of data sets.
    "datasets": {"datasets": ["load_dataset", "load_from_disk", "List"]},
    "tensorboard": {"tensorboard": [], "torch.utils.tensorboard": ["SummaryWriter"]},
    "wandb": {"wandb": ["init", "Image"]},
    "trackio": {"trackio": ["init", "Image"]},
    "fastapi": {"fastapi": ["FastAPI"]},
    "uvicorn": {
        "uvicorn": ["Config", "Server"],
        "uvicorn.protocols.http.h11_impl": ["H11Protocol"],
    },
    "prometheus-client": {"prometheus_client": ["CollectorRegistry", "Counter"]},
    "torchmetrics": {
        "torchmetrics.functional.image": [
            "peak_signal_noise_ratio",
            "structural_similarity_index_measure",
        ]
    },
    "torchtitan": {"torchtitan.trainer": ["Trainer"]},
}
PROBES = {  # distribution: its probe, which says why it cannot be used on a device type, or None
    "flash-attn": flash_attn_absence,
    "flash-attn-3": flash_attn_3_absence,
    "flash-attn-4": flash_attn_4_absence,
    "torch-varlen": varlen_absence,  # which torch brings
    "xformers": xformers_absence,
    "liger-kernel": liger_absence,
    "apex": apex_absence,
    "apex-group-norm": apex_group_norm_absence,  # which apex builds where it is asked to
    "torchao": torchao_absence,
    "peft": peft_absence,
    "transformer-engine": transformer_engine_absence,
    **{
        name: lambda device_type, needed=needed: _absence(device_type, None, needed)
        for name, needed in ON_ANY_DEVICE.items()
    },
    "torch-fidelity": torch_fidelity_absence,
    "gguf": gguf_absence,
    "lmms-eval": lmms_eval_absence,
}


def require(key: str, distributions: Sequence[str], device: torch.device) -> str:
    """The first of `distributions` that can be used on `device`, for the configuration `key`.

    Raises UserError, naming the key and the reason of each, if none can.
    """
    reasons = []
    for name in distributions:
        reason = PROBES[name](device.type)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise UserError(f"{key} cannot be used here ({'; '.join(reasons)}); see docs/libraries.md")


def import_absence(
    module: str, oldest: tuple[int, int] | None, device_type: str, names: Sequence[str] = ()
) -> str | None:
    """Why `module`, with these names, cannot be imported for this device, or None."""
    return _absence(device_type, oldest, {module: names})


def installed(package: str) -> bool:
    """Whether Python finds this top-level package; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def first_line(error: Exception) -> str:
    """An error of another library, short enough for a line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _flash_attn_4_alone() -> bool:
    """Whether flash-attn-4, and no flash-attn, is what brings the package `flash_attn`."""
    package = importlib.util.find_spec("flash_attn")
    # A folder without an __init__.py, which may also be what an uninstalled package left.
    return package is not None and package.origin is None and _has_flash_attn_cute()


def _has_flash_attn_cute() -> bool:
    """Whether Python finds `flash_attn.cute`. `flash_attn`, where it lies, is not imported."""
    if "flash_attn.cute" in sys.modules:
        return sys.modules["flash_attn.cute"] is not None
    package = importlib.util.find_spec("flash_attn")
    folders = None if package is None else package.submodule_search_locations
    return folders is not None and PathFinder.find_spec("flash_attn.cute", folders) is not None


def _apex_absence(device_type: str, needed: Mapping[str, Sequence[str]]) -> str | None:
    """`_absence`, where this is NVIDIA's apex."""
    if not installed("apex"):
        return "not installed"
    try:
        importlib.import_module("apex.optimizers")
    except Exception as error:  # the `apex` of PyPI is a web toolkit, and fails in its own ways
        return f"this is not NVIDIA apex, or it is broken ({first_line(error)})"
    return _absence(device_type, AMPERE, needed)


def _absence(
    device_type: str,
    oldest: tuple[int, int] | None,
    needed: Mapping[str, Sequence[str]],
    below: tuple[int, int] | None = None,
) -> str | None:
    """Why the names that are needed of modules of one package cannot be used, or None.

    `oldest` is the compute capability that they ask for, None where they run on a CPU too; `below`
    that of the first GPUs that are too new.
    """
    if not installed(next(iter(needed)).partition(".")[0]):
        return "not installed"
    reason = None if oldest is None else gpu_absence(device_type, oldest, below)
    if reason is not None:
        return reason
    for module, names in needed.items():
        try:
            found = importlib.import_module(module)
        except Exception as error:  # a package built for another torch fails in its own ways
            return first_line(error)
        for name in names:
            if not hasattr(found, name):
                return f"this version has no {module}.{name}"
    return None
