"""How a model is spread over GPUs and fitted into them: the one place that knows FSDP and DDP.

Parameters are sharded over `parallel.shard` processes, and the shards replicated over the others:
FSDP2, or HSDP by the shape of its mesh. Each block of the language model, or of a decoder, is a
unit that is gathered for its forward and backward alone; everything else stays gathered through a
step. A decoder fits a GPU whole, and with a `shard` of 1 every process has one (DDP).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from metamorph.config import RunConfig
from metamorph.model.float8_gather import plain
from metamorph.model.unified import MetaMorph
from metamorph.processes import is_first

# What selective checkpointing keeps: results of matrix products and of attention. Norms, rotation
# and SwiGLU are cheap to compute again, and hold about half of a block's activations.
KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,  # with a bias
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
KEPT_NAMESPACES = ("metamorph_kernels", "torch_attn")  # the other is varlen_attn's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def place(step: nn.Module, model: MetaMorph, config: RunConfig, device: torch.device) -> None:
    """Puts a model on its device or shards it over all processes' devices, in place.

    Args:
        step: the module whose forward is a whole step down to the losses, `model` in it. What is
            not in a block belongs to it, so that the losses find both heads gathered.
        model: on the CPU in any dtype; its parameters become `training.weights`. Sharded, a
            process reads no more of the mapped files than its own share.
    """
    blocks = model.language.model.layers
    for block in blocks:
        recompute(block, config.training.activation_checkpointing, config.training.lora_dropout > 0)
        if config.training.compile:
            block.compile(fullgraph=True)
    if not torch.distributed.is_initialized():
        model.to(device, DTYPES[config.training.weights])
        return
    trained = [model.language, model.projector, model.vision_head]
    _spread(step, blocks, trained, [model.encoder], config, device)
    sum_gradients(step)


def sum_gradients(step: nn.Module) -> None:
    """Gradients are summed over processes: losses are shares of a mean over all of them."""
    for module in step.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def place_trainer(
    trainer: nn.Module, blocks: Sequence[nn.Module], config: RunConfig, device: torch.device
) -> nn.Module:
    """Puts what trains a decoder on its device, in place; returns what to call for a step.

    Of several processes each holds a whole copy where `parallel.shard` is 1 (DDP), else a part of
    the children that are trained, of which each of `blocks` is gathered alone. Gradients are means
    over processes, for losses are.
    """
    if config.training.compile:
        for block in blocks:
            block.compile(fullgraph=True)
    if not torch.distributed.is_initialized():
        return trainer.to(device)
    if config.parallel.shard == 1:
        return _replicated(trainer.to(device))
    parts = trained_children(trainer)
    frozen = [part for part in trainer.children() if part not in parts]
    _spread(trainer, blocks, parts, frozen, config, device)
    return trainer


def _replicated(trainer: nn.Module) -> nn.Module:
    return DistributedDataParallel(trainer, broadcast_buffers=False, gradient_as_bucket_view=True)


def placed_anew(step: nn.Module) -> nn.Module:
    """What to call for a step once other parameters than before require gradients: DDP sums those
    of the parameters alone that did when it was made."""
    return _replicated(step.module) if isinstance(step, DistributedDataParallel) else step


def trained_children(trainer: nn.Module) -> list[nn.Module]:
    """Those with a parameter that is trained."""
    return [c for c in trainer.children() if any(p.requires_grad for p in c.parameters())]


def _spread(
    step: nn.Module,
    blocks: Iterable[nn.Module],
    trained: Sequence[nn.Module],
    frozen: Sequence[nn.Module],
    config: RunConfig,
    device: torch.device,
) -> None:
    """Shards the `trained` parts of `step`. The `frozen` ones are small: every process has all."""
    dtype, on_gpu = DTYPES[config.training.weights], device.type == "cuda"
    for part in frozen:
        part.to(device, dtype)
    tensors = [whole_tensors(part) for part in trained]
    for part in trained:
        part.to(device="meta", dtype=dtype)
        # pyrefly: ignore[no-matching-overload]  its stub lacks a memory format alone
        part.to(memory_format=torch.contiguous_format)  # FSDP shards no other
    options = {
        "mesh": make_mesh(config.parallel.shard, device),
        "mp_policy": precision_policy(config.training.precision),
        "offload_policy": CPUOffloadPolicy(on_gpu)
        if config.parallel.cpu_offload
        else OffloadPolicy(),
    }
    shard_parts(step, blocks, frozen, **options)
    home = torch.device("cpu") if config.parallel.cpu_offload else device
    for part, whole_part in zip(trained, tensors, strict=True):
        part.to_empty(device=home)
        copy_local_rows(part, whole_part)


def whole_tensors(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, detached: moving `part` changes some tensors in place."""
    named = [*part.named_parameters(), *part.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


@torch.no_grad()
def copy_local_rows(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fills the parameters and buffers of `part` by name: of mapped files a process reads its own
    share alone."""
    for name, parameter in part.named_parameters():
        local_part(parameter).copy_(tensors[name][local_rows(parameter)])
    for name, buffer in part.named_buffers():
        buffer.copy_(tensors[name])


def shard(root: nn.Module, model: MetaMorph, **options) -> None:
    """Blocks are units, all else of `root` is one, the encoder stays whole; options of FSDP2."""
    frozen = [] if model.vision is None else [model.vision]
    shard_parts(root, model.language.model.layers, frozen, **options)


def shard_parts(
    root: nn.Module, blocks: Iterable[nn.Module], frozen: Iterable[nn.Module], **options
) -> None:
    """Each of `blocks` is a unit, all else of `root` is one, but what is `frozen` stays whole."""
    for block in blocks:
        fully_shard(block, **options)
    kept = {parameter for part in frozen for parameter in part.parameters()}
    fully_shard(root, ignored_params=kept, **options)


def _sharded(model: MetaMorph) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if not n.startswith("vision.")]


def make_mesh(shard: int, device: torch.device) -> DeviceMesh:
    """The process group as [replicas, shards] (HSDP), or as [shards] where one shard is all."""
    processes = torch.distributed.get_world_size()
    if shard in (0, processes):
        return init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))
    shape = (processes // shard, shard)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def precision_policy(precision: str) -> MixedPrecisionPolicy:
    """fp32 shards; gathered and computed with in bf16 unless `precision` is fp32."""
    if precision == "fp32":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def recompute(block: nn.Module, mode: str, is_random: bool = False) -> None:
    """Lets a block compute its activations again in the backward instead of keeping them.

    `full` keeps its input alone, `selective` also what is in `KEPT`. A block that `is_random`
    draws the same random numbers again.
    """
    if mode == "none":
        return
    inner = block.forward
    options: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": is_random,
    }
    if mode == "selective":
        options["context_fn"] = _selective_contexts
    block.forward = lambda *arguments: checkpoint(inner, *arguments, **options)


def _selective_contexts():
    return create_selective_checkpoint_contexts(_keep)


def _keep(context, operator, *arguments, **keywords) -> CheckpointPolicy:
    kept = operator in KEPT or operator.namespace in KEPT_NAMESPACES
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def reduce_gradients(step: nn.Module, now: bool) -> None:
    """Whether the next backward sums gradients over processes, or keeps adding them up here."""
    if isinstance(step, FSDPModule):
        step.set_requires_gradient_sync(now)
    elif isinstance(step, DistributedDataParallel):
        step.require_backward_grad_sync = now


def release(step: nn.Module) -> None:
    """Gives back what a forward without a backward left gathered. Until then the parameters of
    `step` are not those that the optimizer knows."""
    if isinstance(step, FSDPModule):
        step.reshard()


def local_rows(parameter: Tensor) -> slice:
    """The rows (of dimension 0) of a parameter that this process holds."""
    if not isinstance(parameter, DTensor):
        return slice(0, len(parameter))
    mesh = parameter.device_mesh
    [dimension] = [i for i, placement in enumerate(parameter.placements) if placement.is_shard()]
    most = -(-len(parameter) // mesh.size(dimension))  # as torch.chunk shares them out
    start = min(most * mesh.get_local_rank(dimension), len(parameter))
    return slice(start, start + len(local_part(parameter)))


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(module: nn.Module, limit: float) -> dict[str, Tensor]:
    """Scales gradients of a larger norm down to `limit`; 0 leaves them all as they are.

    Returns their norm before, a scalar, as `gradient_norm`, and as `gradient_norm_CHILD` that of
    each child of `module` that has any.
    """
    gradients = {
        name: [p.grad for p in part.parameters() if p.grad is not None]
        for name, part in module.named_children()
    }
    norms = {name: _norm(part) for name, part in gradients.items() if part}
    norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    if limit:
        nn.utils.clip_grads_with_norm_(module.parameters(), limit, norm)
    children = {f"gradient_norm_{name}": part for name, part in norms.items()}
    return {"gradient_norm": norm, **children}


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def whole(tensor: Tensor) -> Tensor:
    """A parameter gathered from all processes, which must all call this."""
    tensor = plain(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(model: MetaMorph, dtype: torch.dtype) -> MetaMorph | None:
    """A sharded model's weights in one unsharded model, in the first process; None in others.

    All must call this. The encoder is shared with `model`.
    """
    copy = None
    if is_first():
        with torch.device("meta"):
            copy = MetaMorph(model.config)
    for name, parameter in _sharded(model):
        tensor = whole(parameter)
        if copy is not None:
            copy.load_state_dict({name: tensor.to(dtype)}, strict=False, assign=True)
    if copy is not None:
        copy.vision = model.vision
    return copy


def save_model(model: MetaMorph, folder, tokenizer) -> None:
    """`model.save_pretrained` of a model that may be sharded, a tensor at a time."""
    if is_first():
        model.save_pretrained(folder, tokenizer, whole)
    else:
        for tensor in model.state_dict().values():
            whole(tensor)
