"""examples/cluster: the scripts as they stand, with stand-ins for what only a cluster has."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch.distributed.run import parse_args as parse_torchrun

from metamorph.config.reading import save_config
from metamorph.model.unified import MetaMorph
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.checkpoint import latest_checkpoint
from tests.tiny_run import tiny_config
from tests.warm_programs import warm_programs, write_program

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "examples/cluster"
PROGRAMS = {  # on PATH
    # Tasks side by side, as on one node; all get SIGUSR1 once the file STOP_AT is there.
    "srun": f"""#!{sys.executable}
import os, signal, subprocess, sys, time
from pathlib import Path
command = sys.argv[1:]
while command[0].startswith("-"):
    del command[0]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}})
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
stop_at = os.environ.get("STOP_AT")
while any(task.poll() is None for task in tasks):
    time.sleep(0.01)
    if stop_at and Path(stop_at).exists():
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
        stop_at = None
sys.exit(max(task.wait() for task in tasks))
""",
    "scontrol": """#!/bin/sh
case "$1" in
show) echo localhost; echo another-node ;;
requeue) echo "$2" >> "$RECORDS/requeued" ;;
esac
""",
}
RECORDER = """#!/bin/sh
who="$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS"
echo "$who $*" > "$RECORDS/$RANK"
[ -z "$RESULT" ] || mkdir -p "$RESULT"
exit "${CODE:-0}"
"""


@pytest.fixture
def cluster(tmp_path):
    """A function that begins a script with these variables, as a job of two tasks has them."""
    records = tmp_path / "records"
    records.mkdir()
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        write_program(tmp_path / "bin" / name, text)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "RECORDS": str(records),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip

    def begin(script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", SCRIPTS / script, *map(str, arguments)],
            env=environment | variables, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return begin


@pytest.fixture
def recorded(cluster, tmp_path):
    """A function: exit code of the Slurm script, what each task was told, and what was queued."""
    write_program(tmp_path / "bin/metamorph", RECORDER)

    def run(*arguments: str, **variables: str) -> tuple[int, list[str], list[str]]:
        job = cluster("train.sbatch", *arguments, **variables)
        assert job.communicate(timeout=60)[0] == ""
        told = [(tmp_path / "records" / rank).read_text().strip() for rank in "01"]
        queued = tmp_path / "records/requeued"
        return job.returncode, told, queued.read_text().split() if queued.exists() else []

    return run


def test_every_task_is_told_who_it_is_and_the_job_goes_on_while_there_is_no_result(recorded):
    code, told, queued = recorded("my.yaml", "runs/mine", "--training.steps", "5")
    options = "train my.yaml --output runs/mine --overwrite --training.steps 5"
    assert told == [f"{rank} {rank} 2 localhost 24711 1 {options}" for rank in range(2)]
    assert (code, queued) == (0, ["4711"])


def test_a_job_with_a_checkpoint_resumes(recorded, tmp_path):
    (tmp_path / "runs/mine/checkpoints/step-000002").mkdir(parents=True)
    _, told, _ = recorded("my.yaml", "runs/mine")
    assert all("--resume" in line and "--overwrite" not in line for line in told)


@pytest.mark.parametrize("result", ["model", "decoder"])
def test_a_job_with_a_result_is_over(recorded, result):
    code, _, queued = recorded("my.yaml", "runs/mine", RESULT=f"runs/mine/{result}")
    assert (code, queued) == (0, [])


def test_a_job_that_fails_is_not_queued_again(recorded):
    code, _, queued = recorded("my.yaml", "runs/mine", CODE="2")
    assert (code, queued) == (2, [])


def test_the_job_asks_for_a_task_a_gpu_and_for_the_signal_that_is_handled():
    text = (SCRIPTS / "train.sbatch").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("USR1@")  # not B:, which only the script would get


@pytest.mark.parametrize("script", ["one_node.sh", "many_nodes.sh"])
def test_torchrun_reads_what_a_script_says(cluster, tmp_path, script):
    write_program(tmp_path / "bin/torchrun", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    begun = cluster(script, "my.yaml", "--output", "runs/a b", NODES="4", HOST="node-a")
    options = parse_torchrun(begun.communicate(timeout=60)[0].splitlines())
    assert begun.returncode == 0 and options.module
    assert [options.training_script, *options.training_script_args] == [
        "metamorph", "train", "my.yaml", "--output", "runs/a b",
    ]  # fmt: skip
    assert options.nproc_per_node == "gpu"
    if script == "many_nodes.sh":
        assert (options.nnodes, options.rdzv_endpoint) == ("4", "node-a:29500")
    else:
        assert options.standalone


@pytest.mark.slow
def test_a_job_that_was_asked_to_stop_goes_on_elsewhere_to_its_end(cluster, folder, tmp_path):
    """Two tasks of Slurm until the signal, then two nodes of torchrun; all talk over gloo."""
    with warm_programs(tmp_path / "bin") as warm:
        stop_and_go_on(partial(cluster, **warm), folder, tmp_path)


def stop_and_go_on(cluster: Callable, folder: Path, tmp_path: Path) -> None:
    save_config(tiny_config(folder, "instruct", steps=20, rows_per_step=2), folder / "run.yaml")
    output = tmp_path / "runs/mine"
    job = cluster("train.sbatch", folder / "run.yaml", output, STOP_AT=str(output / "config.yaml"))
    printed = job.communicate(timeout=300)[0]
    assert job.returncode == 0, printed
    stopped = int(re.search(r"stopped after step (\d+) of 20", printed)[1])
    assert latest_checkpoint(output).name == f"step-{stopped:06d}"
    assert (tmp_path / "records/requeued").read_text() == "4711\n"

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    meeting = {"NODES": "2", "PROCESSES": "1", "HOST": "localhost", "PORT": port}
    options = folder / "run.yaml", "--output", output, "--resume"
    # The name of this machine need not be one that it knows itself by.
    here = {"PET_LOCAL_ADDR": "localhost"}
    nodes = [cluster("many_nodes.sh", *options, **meeting, **here) for _ in range(2)]
    for node in nodes:
        printed = node.communicate(timeout=300)[0]
        assert node.returncode == 0, printed
    assert [line["step"] for line in read_metrics(output)] == list(range(1, 21))
    MetaMorph.from_pretrained(output / "model")
