"""Every optional library in every way of running: trained here, or refused by the key that asks.

The libraries are stand-ins, but for torchao and peft; torchrun's processes are one.
"""

import socket
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metamorph.combinations import LIBRARIES, REFUSED, WAYS
from metamorph.errors import UserError
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.loop import train
from metamorph.training.rules.ways import check_combinations, libraries_of, ways_of
from tests import fake_libraries
from tests.tiny_run import tiny_config

GROUPS = {  # libraries that can be asked for together
    "flash_attn, liger, apex": [
        ("model.attention", "flash_attn"),
        ("model.rms_norm", "liger"),
        ("model.rotary", "liger"),
        ("model.swiglu", "liger"),
        ("training.optimizer", "apex"),
    ],
    "xformers, apex, torchao": [
        ("model.attention", "xformers"),
        ("model.rms_norm", "apex"),
        ("training.optimizer", "adamw8bit"),
    ],
    "flash_attn_4": [("model.attention", "flash_attn_4")],
    "varlen, transformer_engine": [
        ("model.attention", "varlen"),
        ("training.optimizer", "transformer_engine"),
    ],
    **{
        f"fp8 by {name}": [("training.fp8_backend", name)]
        for name in ("torchao", "transformer_engine", "native")
    },
}
COMPILED = [("training.fp8_backend", name) for name in ("torchao", "native")]  # below
SAME_STEP = [("training.optimizer", "adamw8bit")]  # compiled blocks are not the optimizer's
TRAINED = [
    (group, way)
    for group, members in GROUPS.items()
    for way in WAYS
    if way != "compile"
    and not (group.startswith("fp8") and way.startswith("fp8"))  # of one key
    and any((member, way) not in REFUSED for member in members)
]


def ask(config, library):
    key, value = library
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    if name == "fp8_backend":
        config.training.precision = "fp8"


def go(config, way, monkeypatch):
    kind, _, rest = way.partition(" ")
    if way in ("torchrun", "cpu_offload"):
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port}
        for name, value in (environment | {"MASTER_ADDR": "localhost"}).items():
            monkeypatch.setenv(name, str(value))
        config.parallel.cpu_offload = way == "cpu_offload"
    elif way == "LoRA":
        config.training.lora_rank = 2
    elif way == "compile":
        config.training.compile = True
    elif kind == "fp8":
        ask(config, ("training.fp8_backend", rest.removeprefix("by ")))
    else:
        config.training.activation_checkpointing = "none" if kind == "no" else kind


def losses_of(folder: Path) -> list[float]:
    lines = read_metrics(folder.parent)
    return [line[name] for line in lines for name in ("text_loss", "visual_cosine")]


@pytest.fixture
def stand_ins(monkeypatch):
    for library in set(fake_libraries.MODULES) - {"torchao"}:
        fake_libraries.install(monkeypatch, library)
    fake_libraries.pretend_gpu(monkeypatch)


@pytest.mark.parametrize(("group", "way"), TRAINED)
def test_a_run_trains(folder, group, way, monkeypatch, stand_ins):
    config = tiny_config(folder, "instruct", steps=1)
    plain = replace(deepcopy(config), output=str(folder / "plain"))
    members = [member for member in GROUPS[group] if (member, way) not in REFUSED]
    for member in members:
        ask(config, member)
    go(config, way, monkeypatch)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles the step of its optimizer
        found = losses_of(train(config))
    assert set(members) <= set(libraries_of(config))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    near = 0.1 if config.training.precision == "fp8" else 1e-3
    assert found == pytest.approx(losses_of(train(plain)), rel=near, abs=near)


@pytest.mark.parametrize(("library", "way"), REFUSED, ids=str)
def test_the_others_are_refused_by_the_key_that_asks(tmp_path, library, way, monkeypatch):
    key, value = library
    config = tiny_config(tmp_path, "instruct")
    ask(config, library)
    go(config, way, monkeypatch)
    started = way in ("torchrun", "cpu_offload")
    assert library in libraries_of(config) and way in ways_of(config, started)
    with pytest.raises(UserError, match=f"^{key}: {value} ") as caught:
        check_combinations(config, started)
    assert REFUSED[library, way] in str(caught.value) and "\n" not in str(caught.value)


def test_every_cell_of_the_table_is_trained_or_refused():
    trained = {
        (member, way)
        for group, way in TRAINED
        for member in GROUPS[group]
        if (member, way) not in REFUSED
    }
    trained |= {(library, "compile") for library in COMPILED + SAME_STEP}
    of_one_key = {
        (library, way)
        for library in LIBRARIES
        for way in WAYS
        if library[0] == "training.fp8_backend" and way.startswith("fp8")
    }
    cells = {(library, way) for library in LIBRARIES for way in WAYS}
    assert trained | set(REFUSED) | of_one_key == cells
    assert not trained & set(REFUSED)


def test_the_page_shows_the_table():
    page = (Path(__file__).parents[2] / "docs/libraries.md").read_text()
    for library in LIBRARIES:
        key, value = library
        verdicts = [
            "" if key == "training.fp8_backend" and way.startswith("fp8")
            else "no" if (library, way) in REFUSED else "yes"
            for way in WAYS
        ]  # fmt: skip
        cells = [[f"`{key}: {value}`"], *([verdict] if verdict else [] for verdict in verdicts)]
        row = "|" + "".join(f" {cell[0]} |" if cell else " |" for cell in cells)
        assert row in page, row


@pytest.mark.parametrize(("key", "backend"), COMPILED)
def test_float8_layers_compile(key, backend):
    from metamorph.model.precision import Float8Linear

    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 16, bias=False)
    if backend == "native":
        layer.__class__ = Float8Linear
    else:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        settings = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=True)
        layer = convert_to_float8_training(torch.nn.Sequential(layer), config=settings)
    x = torch.randn(16, 32)
    with nullcontext() if backend == "native" else torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(found, layer(x))
