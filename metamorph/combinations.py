"""Optional libraries and ways of running: what a run cannot have together, and why."""

# Every library that a run can ask for meets every way of running in a cell: either tests train so
# (`tests/training/test_combinations.py`), or the run is refused by the key that asked, and why.
LIBRARIES = (  # key and value that ask for one
    ("model.attention", "flash_attn"),
    ("model.attention", "flash_attn_4"),
    ("model.attention", "varlen"),
    ("model.attention", "xformers"),
    ("model.rms_norm", "apex"),
    ("model.rms_norm", "liger"),
    ("model.rotary", "liger"),
    ("model.swiglu", "liger"),
    ("training.optimizer", "apex"),
    ("training.optimizer", "adamw8bit"),
    ("training.optimizer", "transformer_engine"),
    ("training.fp8_backend", "torchao"),
    ("training.fp8_backend", "transformer_engine"),
    ("training.fp8_backend", "native"),
)
WAYS = (
    "torchrun",
    "compile",
    "no checkpointing",
    "selective checkpointing",
    "full checkpointing",
    "fp8 by torchao",
    "fp8 by transformer_engine",
    "fp8 by native",
    "cpu_offload",
    "LoRA",
)

_ONE_PROCESS = {
    "adamw8bit": "is for a run of one process; shards are small anyway",
    "apex": "is for a run of one process: it reads the memory of weights, and of sharded ones "
    "torchrun's processes have parts alone; take torch",
}
_NEVER_COMPILED = "was never tried under torch.compile; leave training.compile out, or this key"
REFUSED = {
    **{
        (("training.optimizer", name), way): reason
        for name, reason in _ONE_PROCESS.items()
        for way in ("torchrun", "cpu_offload")
    },
    **{
        (library, "compile"): _NEVER_COMPILED
        for library in LIBRARIES
        if library[1] not in ("adamw8bit", "torchao", "native")
    },
    (("model.rotary", "liger"), "selective checkpointing"): (
        "overwrites what training.activation_checkpointing: selective keeps; take full or none, or "
        "rotary: torch"
    ),
    (("training.optimizer", "transformer_engine"), "cpu_offload"): (
        "moves weights on a GPU alone; take torch"
    ),
    (("training.fp8_backend", "transformer_engine"), "selective checkpointing"): (
        "hides its products from training.activation_checkpointing: selective; take full or none"
    ),
    **{
        (("training.fp8_backend", name), "LoRA"): (
            "cannot train training.lora_rank: its adapters need training.precision fp32 or bf16"
        )
        for name in ("torchao", "transformer_engine", "native")
    },
}
