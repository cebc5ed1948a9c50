"""Write tests/signatures.json: the parameters of the real libraries, read in their sources.

    pip download --no-deps liger-kernel==0.8.5 xformers==0.0.35 transformer-engine==2.20.2 \
        lmms-eval==0.7.3 flash-attn-4==4.0.0b36 trackio==0.43.0
    # and flash_attn-2.8.3.tar.gz from PyPI; unpack all into one folder, beside a link to the
    # folder of an installed torch 2.13.0
    python -m tests.record_signatures FOLDER

Nothing is imported: sources are read by `ast`. NVIDIA apex is on GitHub alone: its
entries were read at the commits that they name, and stay as they are.
"""

import ast
import json
import sys
from pathlib import Path

LMMS_EVAL = "lmms-eval 0.7.3 (wheel)"
TRACKIO = "trackio 0.43.0 (wheel)"
RECORD = Path(__file__).with_name("signatures.json")
SOURCES = {  # stand-in: distribution and version, file, where in it
    "flash_attn_varlen_func": (
        "flash-attn 2.8.3 (sdist)",
        "flash_attn-2.8.3/flash_attn/flash_attn_interface.py",
        "flash_attn_varlen_func",
    ),
    "flash_attn_3_varlen_func": (
        "flash-attn 2.8.3 (sdist, hopper/)",
        "flash_attn-2.8.3/hopper/flash_attn_interface.py",
        "flash_attn_varlen_func",
    ),
    "flash_attn_func": (
        "flash-attn 2.8.3 (sdist)",
        "flash_attn-2.8.3/flash_attn/flash_attn_interface.py",
        "flash_attn_func",
    ),
    "flash_attn_3_func": (
        "flash-attn 2.8.3 (sdist, hopper/)",
        "flash_attn-2.8.3/hopper/flash_attn_interface.py",
        "flash_attn_func",
    ),
    "flash_attn_4_varlen_func": (
        "flash-attn-4 4.0.0b36 (wheel)",
        "flash_attn/cute/interface.py",
        "flash_attn_varlen_func",
    ),
    "varlen_attn": ("torch 2.13.0 (wheel)", "torch/nn/attention/varlen.py", "varlen_attn"),
    "memory_efficient_attention": (
        "xformers 0.0.35 (wheel)",
        "xformers/ops/fmha/__init__.py",
        "memory_efficient_attention",
    ),
    "BlockDiagonalCausalMask.from_seqlens": (
        "xformers 0.0.35 (wheel)",
        "xformers/ops/fmha/attn_bias.py",
        "BlockDiagonalMask.from_seqlens",
    ),
    "LigerRMSNormFunction.apply": (
        "liger-kernel 0.8.5 (wheel)",
        "liger_kernel/ops/rms_norm.py",
        "LigerRMSNormFunction.forward",
    ),
    "LigerRopeFunction.forward": (
        "liger-kernel 0.8.5 (wheel)",
        "liger_kernel/ops/rope.py",
        "LigerRopeFunction.forward",
    ),
    "LigerSiLUMulFunction.forward": (
        "liger-kernel 0.8.5 (wheel)",
        "liger_kernel/ops/swiglu.py",
        "LigerSiLUMulFunction.forward",
    ),
    "autocast": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/quantization.py",
        "autocast.__init__",
    ),
    **{
        name: (
            "transformer-engine 2.20.2 (wheel)",
            "transformer_engine/pytorch/quantization.py",
            name,
        )
        for name in (
            "RecipeState.create",
            "is_fp8_available",
            "is_fp8_block_scaling_available",
            "is_mxfp8_available",
            "is_nvfp4_available",
        )
    },
    "Quantizer.set_usage": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/quantized_tensor.py",
        "Quantizer.set_usage",
    ),
    "Quantizer.__call__": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/quantized_tensor.py",
        "Quantizer.__call__",
    ),
    "Linear.__init__": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/module/linear.py",
        "Linear.__init__",
    ),
    "Linear.forward": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/module/linear.py",
        "Linear.forward",
    ),
    "TransformerEngineAdam.__init__": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/optimizers/fused_adam.py",
        "FusedAdam.__init__",
    ),
    "TransformerEngineAdam.step": (
        "transformer-engine 2.20.2 (wheel)",
        "transformer_engine/pytorch/optimizers/fused_adam.py",
        "FusedAdam.step",
    ),
    "lmms.generate_until": (LMMS_EVAL, "lmms_eval/api/model.py", "lmms.generate_until"),
    "lmms.generate_visual_cot": (LMMS_EVAL, "lmms_eval/api/model.py", "lmms.generate_visual_cot"),
    "lmms.loglikelihood": (LMMS_EVAL, "lmms_eval/api/model.py", "lmms.loglikelihood"),
    "lmms.generate_until_multi_round": (
        LMMS_EVAL,
        "lmms_eval/api/model.py",
        "lmms.generate_until_multi_round",
    ),
    "TokenCounts": (LMMS_EVAL, "lmms_eval/api/instance.py", "TokenCounts"),
    "GenerationResult": (LMMS_EVAL, "lmms_eval/api/instance.py", "GenerationResult"),
    "ModelManifest": (LMMS_EVAL, "lmms_eval/models/registry_v2.py", "ModelManifest"),
    "init": (TRACKIO, "trackio/__init__.py", "init"),
    "Run.log": (TRACKIO, "trackio/run.py", "Run.log"),
    "Run.finish": (TRACKIO, "trackio/run.py", "Run.finish"),
    "TrackioImage.__init__": (TRACKIO, "trackio/media/image.py", "TrackioImage.__init__"),
}


def parameters(source: str, place: str) -> list[str]:
    """Names in their order, `*` before keywords alone; without self, cls and ctx. Those of a
    dataclass are its fields."""
    body = ast.parse(source).body
    *classes, name = place.split(".")
    for outer in classes:
        [body] = [
            node.body for node in body if isinstance(node, ast.ClassDef) and node.name == outer
        ]
    kinds = ast.FunctionDef | ast.ClassDef
    *_, found = [node for node in body if isinstance(node, kinds) and node.name == name]
    if isinstance(found, ast.ClassDef):
        fields = [node.target for node in found.body if isinstance(node, ast.AnnAssign)]
        return [field.id for field in fields if isinstance(field, ast.Name)]
    arguments = found.args
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    names = [name for name in names if name not in ("self", "cls", "ctx")]
    if arguments.kwonlyargs:
        names += ["*", *(argument.arg for argument in arguments.kwonlyargs)]
    return names


def main(folder: Path) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for stand_in, (origin, file, place) in SOURCES.items():
        source = (folder / file).read_text()
        record[stand_in] = {
            "from": origin,
            "file": file,
            "parameters": parameters(source, place),
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
