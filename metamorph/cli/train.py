"""metamorph train: one training stage, its dry run, or its plan for many GPUs."""

import argparse

from metamorph.cli.arguments import whole
from metamorph.config.reading import add_config_arguments, load_config, overrides_from_namespace
from metamorph.config.shipped import find_config
from metamorph.costs.hardware import GPUS
from metamorph.errors import UserError

NAME = "train"
GPU = "h100"
SUMMARY = "run one training stage"
DESCRIPTION = """\
Runs one training stage (language, align, instruct, decoder or distill) from a YAML file.
Every key can be overridden:

  metamorph train configs/toy/instruct.yaml --training.steps 100 --output runs/short
  metamorph train configs/toy/instruct.yaml --data.kinds '{question: 1, draw: 1}'
  metamorph train configs/toy/instruct.yaml --resume true
  metamorph train configs/toy/instruct.yaml --dry-run
  metamorph train configs/metamorph_8b/instruct.yaml --dry-run

Writes config.yaml, metrics.jsonl, checkpoints/ and the result (model/ or decoder/) to the run
folder. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint before they stop it, another one after 2
seconds stops it at once. Several GPUs: torchrun --nproc-per-node 8 -m metamorph train CONFIG"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file; configs/... are shipped")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="train nothing: plan for the GPUs that the file is cut for (parallel.gpus); where it "
        "names none, load everything and show the first row of data, too",
    )  # fmt: skip
    parser.add_argument(
        "--world-size", type=whole(1), metavar="INT",
        help="with --dry-run: plan for this many GPUs, which need not be here, nor weights or data",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-type", choices=tuple(GPUS),
        help=f"with --dry-run: which GPUs to plan for (default: {GPU})",
    )  # fmt: skip
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    overrides = overrides_from_namespace(arguments, arguments.unknown_arguments)
    config = load_config(find_config(arguments.config), overrides)
    for option in ("world_size", "gpu_type"):
        if getattr(arguments, option) is not None and not arguments.dry_run:
            name = option.replace("_", "-")
            raise UserError(f"--{name}: it plans, so it needs --dry-run beside it")
    if arguments.gpu_type is not None and not (arguments.world_size or config.parallel.gpus):
        raise UserError(
            "--gpu-type: a run on the devices here is no plan; say for how many GPUs by "
            "--world-size or parallel.gpus"
        )
    gpu = GPUS[arguments.gpu_type or GPU]
    if arguments.world_size is not None:
        from metamorph.planning.world import plan_run

        print(plan_run(config, arguments.world_size, gpu))
    elif arguments.dry_run:
        from metamorph.planning.dry_run import dry_run

        print(dry_run(config, gpu))
    else:
        from metamorph.processes import is_first
        from metamorph.training.loop import train

        folder = train(config)
        if is_first():
            print(f"saved {folder}")
