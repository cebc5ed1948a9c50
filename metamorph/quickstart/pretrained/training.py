"""SmolLM2 learns to read and to draw toy scenes.

Everything lies below one run folder, and what is done is not done again: a stage that ended is
skipped, one that was stopped goes on from its last checkpoint.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from metamorph import lock
from metamorph.config import RunConfig
from metamorph.config.reading import load_config
from metamorph.config.shipped import configs_folder
from metamorph.devices import resolve_device
from metamorph.disk import write_text
from metamorph.errors import UserError
from metamorph.generation.own_answers import (
    HELD_OUT_PROMPTS,
    LONGEST_ANSWER,
    PROMPTS,
    write_own_answers,
)
from metamorph.quickstart.pretrained.language import (
    CHAT_TEMPLATE,
    CONFIGS,
    plain_assistant,
)
from metamorph.quickstart.pretrained.result import write_result
from metamorph.quickstart.run import ASSETS
from metamorph.training.checkpoint import latest_checkpoint
from metamorph.training.language_stage import LanguageStage
from metamorph.training.loop import train

STAGES = ("align", "instruct")
MIXTURE = configs_folder() / "mixtures" / "english.yaml"
CHAT, HELD_OUT_CHAT = "chat.jsonl", "chat_held_out.jsonl"
TIMED_STEPS = 2
MARKER = "training-of-smollm2"  # tells its folder from those that another quickstart may replace


@contextmanager
def claimed_training(folder: Path, seed: int) -> Generator[None]:
    """Makes the run folder, or goes on in the one of an earlier, unfinished run of this seed.

    Raises `UserError` if the folder holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file, expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    owner = f"seed {seed}\n"
    with lock.locked(folder, "--output"):
        content = [path for path in folder.iterdir() if path.name != lock.FILE]
        marker = folder / MARKER
        if content and not (marker.is_file() and marker.read_text() == owner):
            raise UserError(
                f"--output: {folder} holds something else than a training of SmolLM2 with seed "
                f"{seed}; expected a new folder"
            )
        write_text(marker, owner)
        yield


def precision_of(device: torch.device) -> str:
    """bf16 where the device computes in it, else fp32."""
    has_bf16 = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


def stage_config(stage: str, folder: Path, language: Path, seed: int) -> RunConfig:
    """The stage's YAML with its folders below `folder`, to begin or to go on."""
    output = folder / "stages" / stage
    overrides = {
        "output": str(output),
        "seed": str(seed),
        "training.precision": precision_of(resolve_device("auto")),
    }
    if stage == "align":
        overrides["model.language"] = str(language)
        overrides["model.vision"] = str(ASSETS / "encoder")
        overrides["model.chat_template"] = str(CHAT_TEMPLATE)
    else:
        overrides["model.folder"] = str(folder / "stages" / "align" / "model")
        overrides["data.path"] = str(folder / "data" / MIXTURE.name)
    begun = latest_checkpoint(output) is not None
    overrides["resume" if begun else "overwrite"] = "true"
    return load_config(CONFIGS / f"{stage}.yaml", overrides)


def write_chat(language: Path, data: Path) -> None:
    """What the language model answers to plain prompts before it learns of pictures, and the
    mixture that has these answers beside the scenes."""
    if (data / MIXTURE.name).exists():
        return
    assistant = plain_assistant(language, str(CHAT_TEMPLATE))
    for path, name in ((PROMPTS, CHAT), (HELD_OUT_PROMPTS, HELD_OUT_CHAT)):
        prompts = path.read_text(encoding="utf-8").splitlines()
        write_own_answers(assistant, prompts, data / name, LONGEST_ANSWER)
    write_text(data / MIXTURE.name, MIXTURE.read_text(encoding="utf-8"))


def seconds_per_step(config: RunConfig) -> float:
    """Of a stage's forward and backward here, by a few steps that train nothing."""
    stage = LanguageStage(config, resolve_device(config.device))
    stage.forward_backward(0)  # the first one allocates
    started = time.perf_counter()
    for step in range(TIMED_STEPS):
        stage.forward_backward(step)
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    stage.close()
    return seconds


def print_plan(folder: Path, language: Path, seed: int) -> None:
    """What is to be done, and about how long it will take here."""
    configs = [stage_config(stage, folder, language, seed) for stage in STAGES]
    align, instruct = configs
    seconds = seconds_per_step(align)
    steps = sum(config.training.steps for config in configs)
    print(
        f"plan: its own answers to plain prompts, then {align.training.steps} steps that align the "
        f"projector and {instruct.training.steps} that teach all by adapters of rank "
        f"{instruct.training.lora_rank}, each of {instruct.data.row_length} tokens, in "
        f"{align.training.precision}\n"
        f"a step takes about {seconds:.1f} s here, so all of them {steps * seconds / 60:.0f} "
        f"minutes; stop it at any time, the same command goes on"
    )


def train_smollm2(output: Path, language: Path, seed: int, command: str) -> Path:
    """Trains below `output`; returns the folder of what was learned, which `build_model` takes.
    `command` is for its log. Nothing is done twice."""
    stages = {stage: output / "stages" / stage for stage in STAGES}
    if not (stages["align"] / "model" / "config.json").exists():
        print_plan(output, language, seed)
    write_chat(language, output / "data")
    for stage, run in stages.items():
        if not (run / "model" / "config.json").exists():
            train(stage_config(stage, output, language, seed))
    write_result(stages, command, output / "adapter")
    return output / "adapter"
