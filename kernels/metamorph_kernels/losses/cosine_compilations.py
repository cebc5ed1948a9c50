"""What the ahead-of-time checker compiles of the cosine loss."""

from collections.abc import Iterator
from itertools import product

from metamorph_kernels.compilation import EVERY_ARCHITECTURE, HOPPER_ONLY, Compilation
from metamorph_kernels.losses.cosine_triton import (
    SCALE_WARPS,
    SCALED,
    cosine_forward,
    cosine_scale,
    row_layout,
    scale,
)


def compilations() -> Iterator[Compilation]:
    """The kernels at widths of every class; for each architecture the widest row in bfloat16."""
    widths = (1, 96, 256, 512, 1024, 1152, 2048, 4096, 8192)
    for element, columns in product(("bf16", "fp16", "fp32"), widths):
        tiles, layout = row_layout(columns)
        del layout["num_warps"]
        kept = "*fp32" if element == "fp16" else f"*{element}"
        stride = "i32:16" if columns % 16 == 0 else "i32"
        everywhere = element == "bf16" and columns == max(widths)
        launch = {
            "num_warps": tiles.num_warps,
            "num_stages": 1,
            "tensor_cores": False,
            "architectures": EVERY_ARCHITECTURE if everywhere else HOPPER_ONLY,
        }
        # With an index there is a count exactly where the gradient is that of the mean.
        for index, gradient, mean in (
            (None, None, False),
            (None, kept, True),
            ("*i64", kept, False),
            ("*i64", kept, True),
        ):
            words = {"gradient": gradient, "mean": mean, "index": index}
            yield Compilation(
                kernel=cosine_forward,
                configuration=" ".join(
                    [element, f"C={columns}", *(word for word in words if words[word])]
                ),
                arguments={
                    "prediction_ptr": f"*{element}",
                    "target_ptr": f"*{element}",
                    "index_ptr": index,
                    "losses_ptr": "*fp32",
                    "gradient_ptr": gradient,
                    "count_ptr": index if mean else None,
                    "rows": "i32",
                    "targets": "i32",
                    "prediction_stride": stride,
                    "target_stride": stride,
                    "MEAN": mean,
                    **layout,
                },
                **launch,
            )
        yield Compilation(
            kernel=cosine_scale,
            configuration=f"{element} C={columns}",
            arguments={
                "matrix_ptr": kept,
                "factors_ptr": "*fp32",
                "out_ptr": f"*{element}",
                "rows": "i32",
                "factors_stride": "i32",
                **layout,
            },
            **launch,
        )
    for element in ("bf16", "fp32"):
        yield Compilation(
            kernel=scale,
            configuration=element,
            arguments={
                "values_ptr": f"*{element}",
                "factor_ptr": "*fp32",
                "size": "i64:16",
                "BLOCK": SCALED,
            },
            num_warps=SCALE_WARPS,
            num_stages=1,
            tensor_cores=False,
            architectures=EVERY_ARCHITECTURE if element == "bf16" else HOPPER_ONLY,
        )
