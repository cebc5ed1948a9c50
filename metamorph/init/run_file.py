"""`metamorph init`: from what somebody says to a run file that `metamorph train` would accept."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from metamorph.config import RunConfig
from metamorph.config.reading import load_config
from metamorph.costs.hardware import GPUS, GPUS_IN_A_NODE
from metamorph.devices import resolve_device
from metamorph.disk import atomic_path
from metamorph.errors import UserError, within
from metamorph.folders import check_folder
from metamorph.init.choices import Choice, commented, config_of
from metamorph.init.fitting import fitted
from metamorph.init.proposal import Wishes, propose
from metamorph.model.encoder_kinds import kind_of
from metamorph.model.language_config import LanguageConfig
from metamorph.model.outline import ARCHITECTURES
from metamorph.model.weights import read_json
from metamorph.planning.world import plan_run
from metamorph.training.rules import check_rules

ANY_GPU = GPUS["h100"]  # what is checked here is the same for all


@dataclass(frozen=True)
class Written:
    """A run file and the choices in it."""

    path: Path
    choices: list[Choice]


def path_of(name: str) -> Path:
    """The file that a name stands for: `my-run` is my-run.yaml. Raises `UserError` for none."""
    path = Path(name)
    if path.name in ("", "..") or not name.isprintable():
        raise UserError(f"{name!r} is no name of a run file, expected one such as my-run")
    return path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")


def check_place(path: Path, overwrite: bool) -> None:
    """Raises `UserError` where a file would be lost, or its folder is missing."""
    check_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected the name of a run file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it, or give another name")


def check_model(folder: str, option: str) -> str:
    """A model's folder, or a path that has the name of a public one whose sizes are known, which
    can be downloaded later. Raises `UserError` for others."""
    if not folder:
        raise UserError(f"{option}: it is empty, expected a folder")
    if not Path(folder).is_dir() and (ARCHITECTURES / f"{Path(folder).name}.json").exists():
        return folder
    path = check_folder(folder, option)
    with within(option):
        if option == "--language":
            LanguageConfig.read(path)
        elif option == "--vision":
            with within(path / "config.json"):
                kind_of(read_json(path / "config.json"))
    return folder


def write_run_file(path: Path, wishes: Wishes, overwrite: bool = False) -> Written:
    """Proposes, checks as a dry run does, and writes. Nothing is written if anything is wrong.

    Raises `UserError`.
    """
    check_place(path, overwrite)
    choices = propose(wishes)
    if wishes.gpus and wishes.memory is not None and wishes.stage != "decoder":
        choices = fitted(choices, wishes.gpus, wishes.memory)
    config = config_of(choices)
    check(config, wishes.gpus)
    with atomic_path(path) as temporary:
        temporary.write_text(commented(choices, _head(path, wishes)), encoding="utf-8")
        if load_config(temporary) != config:
            raise RuntimeError("the run file does not say what was meant")
    return Written(path, choices)


def check(config: RunConfig, gpus: int) -> None:
    """The rules of `train --dry-run`: of the machine here, or of so many GPUs, which need not be
    here. No weights are read. Raises `UserError`."""
    if not gpus:
        check_rules(config, resolve_device("cpu"))
    plan_run(config, max(gpus, 1), ANY_GPU)


def commands(path: Path, wishes: Wishes) -> list[str]:
    """What to type next, quoted for a shell."""
    file = shlex.quote(str(path))
    train = f"metamorph train {file}"
    if wishes.gpus > 1:
        nodes = nodes_of(wishes.gpus)
        here = wishes.gpus // nodes
        meet = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 "
        train = f"torchrun {meet if nodes > 1 else ''}--nproc-per-node {here} -m {train}"
    return [f"metamorph validate-data {file}", f"metamorph train {file} --dry-run", train]


def nodes_of(gpus: int) -> int:
    """The fewest nodes that share the GPUs evenly: 12 are two times six, for torchrun starts as
    many processes on each."""
    fewest = -(-gpus // GPUS_IN_A_NODE)
    return next(nodes for nodes in range(fewest, gpus + 1) if gpus % nodes == 0)


def _head(path: Path, wishes: Wishes) -> list[str]:
    return [
        "Proposed by `metamorph init`: change what you know better. `metamorph train --help` lists",
        "every key; docs/training.md and docs/data.md say more.",
        "",
        *(f"  {command}" for command in commands(path, wishes)),
    ]
