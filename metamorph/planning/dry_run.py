"""What a run would do, in text: everything up to its first step, and nothing written.

metamorph train configs/toy/instruct.yaml --dry-run
"""

from contextlib import closing

from metamorph.config import RunConfig
from metamorph.devices import resolve_device
from metamorph.training.checkpoint import load_checkpoint
from metamorph.training.loop import open_stage
from metamorph.training.rules import check_rules
from metamorph.training.run_folder import find_checkpoint


def dry_run(config: RunConfig) -> str:
    """Opens a run as training would, at its checkpoint if it resumes, and describes it.

    Raises `UserError` for whatever would stop the run before its first step.
    """
    device = resolve_device(config.device)
    checkpoint = find_checkpoint(config)
    check_rules(config, device)
    with closing(open_stage(config, device)) as stage:
        step = 0
        if checkpoint is not None:
            state = load_checkpoint(checkpoint, stage.module, stage.optimizer)
            stage.load_state_dict(state["stage"])
            step = state["step"]
        head = (
            f"stage {config.stage} on {device}, step {step} to {config.training.steps}\n"
            f"  a dry run: nothing is trained, nothing is written to {config.output}"
        )
        return "\n\n".join([head, *stage.describe_plan()])
