"""A dry run: all of a run up to its first step, in text, and nothing on disk."""

import re

import pytest

from metamorph.cli.command import main
from metamorph.config.reading import save_config
from metamorph.model.describe import compact, describe_precision
from metamorph.model.precision import Float8Layers
from metamorph.training.loop import train
from tests.tiny_run import tiny_config, tiny_diffusion


def dry_run(folder, config, capsys, *options: str) -> str:
    """What `--dry-run` prints; it must leave the folder as it was."""
    save_config(config, folder / "run.yaml")
    before = sorted(folder.rglob("*"))
    assert main(["train", str(folder / "run.yaml"), "--dry-run", *options]) == 0
    assert sorted(folder.rglob("*")) == before
    return capsys.readouterr().out


def table(text: str) -> dict[str, tuple[int, int]]:
    """Part: (trained, frozen)."""
    lines = text.partition("parameters ")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [line.rsplit(maxsplit=2) for line in lines if line.endswith(tuple("0123456789"))]
    return {
        name.strip(): tuple(int(count.replace(",", "")) for count in counts)
        for name, *counts in cells
    }


def test_parameters_precision_and_the_first_row(folder, capsys):
    config = tiny_config(folder, "instruct", precision="fp8", fp8_backend="native")
    text = dry_run(folder, config, capsys)
    assert text.startswith("stage instruct on cpu, step 0 of 6\n")
    counts = table(text)
    assert list(counts) == ["language", "projector", "vision head", "encoder"]
    hidden, width = 32, 24
    projector = width * hidden + hidden + hidden * hidden + hidden
    assert counts["projector"] == (projector, 0)
    assert counts["encoder"][0] == 0 and counts["encoder"][1] > 0
    assert "language.model.layers.0-1.self_attn.{q,k,v,o}_proj: float8 (native)\n" in text
    assert "language.model.layers.0-1.mlp.{gate,up,down}_proj: float8 (native)\n" in text
    assert "projector: left as in bf16, 24 x 32 x 32, float8 needs multiples of 16\n" in text
    assert "language.lm_head: left as in bf16, a head\n" in text

    header, *documents = text.partition("first row: ")[2].split("\ndocument ")
    assert header.startswith(f"{len(documents)} documents and ")
    assert [document.partition(":")[0] for document in documents] == [
        str(number) for number in range(1, len(documents) + 1)
    ]
    drawn = next(document for document in documents if "-draw, " in document)
    assert "user<|end_header_id|>\n\n    Generate an image of" in drawn
    assert drawn.count("«") == drawn.count("»") == 1
    answer = drawn.partition("«")[2].partition("»")[0]
    assert answer.startswith("<image_start>[picture ")
    assert answer.endswith(": 64 x 64, 4 tokens]<image_end><|eot_id|>")
    asked = next(document for document in documents if "-question, " in document)
    prompt, _, answer = asked.partition("«")
    assert "<image_start>[picture " in prompt and "[picture" not in answer
    assert answer.rstrip().endswith("<|eot_id|>»")


def test_align_trains_the_projector_and_the_input_rows_of_added_tokens(folder, capsys):
    text = dry_run(folder, tiny_config(folder, "align"), capsys)
    counts = table(text)
    assert counts["projector"][1] == 0 and counts["vision head"][0] == 0
    assert counts["language"][0] % 32 == 0 and counts["language"][1] > 0
    assert "only those of added tokens move" in text and "precision fp32\n" in text


def test_a_run_to_resume_is_described_from_its_checkpoint(folder, capsys):
    config = tiny_config(folder, "instruct", steps=3)
    first = dry_run(folder, config, capsys)
    train(config)
    capsys.readouterr()
    later = dry_run(folder, config, capsys, "--resume")
    assert "step 3 of 3\n" in later
    assert later.partition("first row")[2] != first.partition("first row")[2]


def test_the_decoder_stage(folder, capsys):
    for part, name in zip(tiny_diffusion(), ("vae", "unet", "scheduler"), strict=True):
        part.save_pretrained(folder / "base" / name)
    config = tiny_config(folder, "decoder", precision="bf16")
    config.decoder.base = str(folder / "base")
    config.decoder.ema_decay = 0.99
    text = dry_run(folder, config, capsys)
    counts = table(text)
    assert list(counts) == ["encoder", "vae", "unet", "adapter"]
    assert [trained > 0 for trained, _ in counts.values()] == [False, False, True, True]
    assert "\nprecision bf16\n" in text
    memory = text.partition("memory of a GPU, estimated (GiB), without activations\n")[2]
    averages = re.search(r"  moving average +([\d.]+)\n", memory)
    trained = sum(trained for trained, _ in counts.values())
    assert float(averages[1]) == pytest.approx(4 * trained / 2**30, abs=5e-4)


def test_what_would_stop_the_run_stops_the_dry_run(folder, capsys):
    config = tiny_config(folder, "instruct", precision="fp8", fp8_backend="native")
    config.data.row_length = 100
    save_config(config, folder / "run.yaml")
    assert main(["train", str(folder / "run.yaml"), "--dry-run"]) == 2
    assert "multiple of 16, got 100" in capsys.readouterr().err
    (folder / "instruct").mkdir()
    (folder / "instruct" / "file").touch()
    assert main(["train", str(folder / "run.yaml"), "--dry-run"]) == 2
    assert "add --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["projector", "language.lm_head"], ["projector", "language.lm_head"]),
        (["a.layers.3.mlp.up_proj"], ["a.layers.3.mlp.up_proj"]),
        (
            [f"a.layers.{n}.mlp.{leaf}_proj" for n in (0, 1, 2, 10) for leaf in ("up", "down")],
            ["a.layers.0-2,10.mlp.{up,down}_proj"],
        ),
        (
            ["a.layers.0.mlp.up_proj", "a.layers.1.mlp.up_proj", "a.layers.1.mlp.down_proj"],
            ["a.layers.0-1.mlp.up_proj", "a.layers.1.mlp.down_proj"],
        ),
    ],
)
def test_like_names_are_joined(names, expected):
    assert compact(names) == expected


def test_reasons_are_named_once_for_like_layers():
    left = {f"m.layers.{n}.k_proj": "24 x 12" for n in range(3)}
    text = describe_precision("fp8", Float8Layers("native", (), left))
    assert text.splitlines()[1:] == ["  m.layers.0-2.k_proj: left as in bf16, 24 x 12"]


def test_operations_and_memory_of_the_first_step(folder, capsys):
    """Two rows a step: both are counted, and shown."""
    text = dry_run(folder, tiny_config(folder, "instruct", rows_per_step=2), capsys)
    assert "\nteraflops of 2 rows " in text and "  encoder, apart " in text
    assert "\nsecond row: " in text and "third row" not in text
    memory = text.partition("memory of a GPU, estimated (GiB)")[2].partition("\n\n")[0]
    assert "activations of blocks, none *" in memory and "  peak " in memory
    trained = sum(trained for trained, _ in table(text).values())
    line = next(line for line in memory.splitlines() if "optimizer states" in line)
    assert float(line.split()[-1]) == pytest.approx(8 * trained / 2**30, abs=5e-4)
