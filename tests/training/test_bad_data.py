"""One bad line of every kind in a user's file: the run goes on, and says what it left out."""

import json

from PIL import Image

from metamorph.cli.command import main
from metamorph.monitor.metrics_file import read_metrics
from tests.tiny_run import GRID


def record(image, *values) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]
    return {"image": image, "conversations": turns}


def test_every_kind_of_bad_sample_is_skipped_counted_and_printed(folder, capsys):
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), "red").save(images / "red.png")
    Image.new("RGB", (300, 300)).save(images / "big.png")
    (images / "text.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save(folder / "secret.png")
    lines = [
        record("red.png", "<image>What colour is it?", "red"),
        record("red.png", "Draw red.", "<image>"),
        record("gone.png", "<image>?", "a"),
        record("text.png", "<image>?", "a"),
        record("big.png", "<image>?", "a"),
        record("../secret.png", "<image>?", "a"),
        record("red.png", "<image><image>?", "a"),
        record([], "a question " * 200, "a"),
        {"conversations": []},
        "{oops",
    ]
    data = folder / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    data.write_text("\n".join(texts) + "\n")
    (folder / "run.yaml").write_text(
        json.dumps(  # JSON is YAML
            {
                "stage": "instruct",
                "output": str(folder / "run"),
                "device": "cpu",
                "model": {
                    "language": str(folder / "llama"),
                    "vision": str(folder / "siglip"),
                    "grid": GRID,
                },
                "data": {
                    "path": str(data),
                    "image_root": str(images),
                    "row_length": 128,
                    "max_pixels": 10_000,
                    "skip_limit": 1.0,
                },
                "training": {"steps": 2, "log_every": 1},
            }
        )
    )
    assert main(["train", str(folder / "run.yaml")]) == 0
    skipped = read_metrics(folder / "run")[-1]["skipped"]
    printed = capsys.readouterr().out
    causes = {
        "missing image", "corrupt image", "image too large", "image outside its root",
        "image count differs", "longer than a row", "empty conversation", "malformed record",
    }  # fmt: skip
    assert set(skipped) == causes
    for cause, count in skipped.items():
        assert f"skipped {count} samples: {cause} (first: " in printed
