"""What a run would do, in text: everything up to its first step, and nothing written.

A file that is cut for some number of GPUs is planned for them, which need not be here.

metamorph train configs/toy/instruct.yaml --dry-run
"""

from contextlib import closing

from metamorph.config import RunConfig
from metamorph.costs.hardware import Gpu
from metamorph.devices import resolve_device
from metamorph.planning.world import plan_run
from metamorph.processes import check_processes
from metamorph.training.checkpoint import load_checkpoint
from metamorph.training.loop import open_stage
from metamorph.training.optimizer import Progress
from metamorph.training.rules import check_rules
from metamorph.training.run_folder import find_checkpoint


def dry_run(config: RunConfig, gpu: Gpu) -> str:
    """The plan of a run for `parallel.gpus` GPUs; without that key, the run opened and described.

    Raises `UserError` for whatever would stop the run before its first step.
    """
    gpus = config.parallel.gpus
    if not gpus:
        return describe_run(config)
    return (
        f"planned for {gpus} GPUs, which this run file is cut for (parallel.gpus); --world-size "
        f"plans for\nanother number, --parallel.gpus 0 opens model and data here instead\n\n"
        f"{plan_run(config, gpus, gpu)}"
    )


def describe_run(config: RunConfig) -> str:
    """Opens a run as training would, at its checkpoint if it resumes, and describes it."""
    check_processes()
    device = resolve_device(config.device)
    checkpoint = find_checkpoint(config)
    check_rules(config, device)
    with closing(open_stage(config, device)) as stage:
        progress = Progress.of(config.training, len(stage.lanes.source))
        if checkpoint is not None:
            state = load_checkpoint(checkpoint, stage.module, stage.optimizer)
            stage.load_state_dict(state["stage"])
            progress.advance(stage.lanes.used(), state["step"])
        head = (
            f"stage {config.stage} on {device}, step {progress}\n"
            f"  a dry run: nothing is trained, nothing is written to {config.output}"
        )
        return "\n\n".join([head, *stage.describe_plan()])
