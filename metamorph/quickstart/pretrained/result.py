"""What SmolLM2 was taught, in the form in which the package ships it, and the model made of it."""

import json
import shutil
from pathlib import Path

import torch

from metamorph.disk import write_text
from metamorph.generation.joining import join
from metamorph.model.adapter_files import (
    ADAPTERS_FILE,
    HEADS_FILE,
    PEFT_CONFIG,
    SAMPLE,
    open_adapted,
)
from metamorph.model.weights import read_file, write_file
from metamorph.monitor.metrics_file import read_metrics
from metamorph.quickstart.run import ASSETS, ONE_PASS_DECODER

SHIPPED = ASSETS / "smollm2"
LOG = "training.json"  # of the run that made it: the command, and its losses
SETTINGS = ("config.json", "chat_template.jinja")


def write_result(stages: dict[str, Path], command: str, folder: Path) -> None:
    """The adapter of the last of some run folders by stage, in float16, with the log of all."""
    adapter = [*stages.values()][-1] / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ADAPTERS_FILE, HEADS_FILE):
        tensors = read_file(adapter / name)
        halves = {key: value if key == SAMPLE else value.half() for key, value in tensors.items()}
        write_file(folder / name, halves)
    for name in SETTINGS:
        shutil.copyfile(adapter / name, folder / name)
    settings = json.loads((adapter / PEFT_CONFIG).read_text(encoding="utf-8"))
    # Where the run lay says nothing to others.
    settings["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    write_text(folder / PEFT_CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    metrics = {name: read_metrics(run) for name, run in stages.items()}
    log = {"command": command, "torch": torch.__version__, "metrics": metrics}
    write_text(folder / LOG, json.dumps(log) + "\n")


def build_model(adapter: Path, language: Path, model: Path) -> None:
    """Makes `model`, which answers and draws, of an adapter and its language model, with the toy's
    encoder and its one-pass decoder: that learns from features of the encoder alone, whichever
    model predicts them later."""
    undrawn = model.with_name(f"{model.name}-without-decoder")
    shutil.rmtree(undrawn, ignore_errors=True)  # of a process that was killed
    built, tokenizer = open_adapted(adapter, language, ASSETS / "encoder")
    try:
        built.save_pretrained(undrawn, tokenizer)
        join(undrawn, ONE_PASS_DECODER, model)
    finally:
        shutil.rmtree(undrawn, ignore_errors=True)
