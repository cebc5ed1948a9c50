"""Training on mixtures: bad samples are left out and named, cached features change nothing."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamorph.cli.command import main
from metamorph.config import DataConfig
from metamorph.config.reading import save_config
from metamorph.data.conversation import ChatEncoder
from metamorph.data.documents import Documents
from metamorph.data.lanes import Lanes, open_documents
from metamorph.data.opening import open_source
from metamorph.data.packing import RowStream, TargetCounts, pack_row
from metamorph.data.toy.source import ToyScenes
from metamorph.errors import UserError
from metamorph.model.siglip import SiglipEncoder
from metamorph.monitor.metrics_file import read_metrics
from metamorph.training.batch import Batch
from metamorph.training.language_stage import LanguageStage, batch_losses
from metamorph.training.loop import train
from tests.tiny_run import ALL_KINDS, tiny_config

CPU = torch.device("cpu")


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def talk(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def write_mixture(folder):
    """60 questions of which one in ten is bad, each in its own way, and 30 captions in a tar."""
    images = folder / "images"
    images.mkdir()
    (images / "red.jpg").write_bytes(jpeg("red"))
    (images / "half.jpg").write_bytes(jpeg("red")[:300])
    Image.new("RGB", (300, 300)).save(images / "bomb.png")
    good = {"image": "red.jpg", "conversations": talk("<image>What colour is it?", "red")}
    bad = [
        good | {"image": "half.jpg"},
        good | {"image": ["red.jpg", "red.jpg"]},
        good | {"image": "bomb.png"},
        good | {"image": "../data.jsonl"},
        good | {"image": "gone.jpg"},
        "{oops",
    ]
    lines = [bad[i // 10] if i % 10 == 7 else good for i in range(60)]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "data.jsonl").write_text("\n".join(texts) + "\n")
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(30):
            for name, data in (("jpg", jpeg("blue")), ("txt", b"a large blue square")):
                info = tarfile.TarInfo(f"{number}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "mixture.yaml").write_text(
        "questions: {weight: 2, path: data.jsonl, image_root: images}\n"
        "pairs: {weight: 1, source: webdataset, family: captions, path: pairs.tar}\n"
    )
    return folder / "mixture.yaml"


@pytest.fixture
def config(folder):
    config = tiny_config(folder, "instruct", steps=4, rows_per_step=2)
    config.data = DataConfig(
        source="mixture", path=str(write_mixture(folder)), row_length=256, max_pixels=10_000
    )
    return config


CAUSES = {
    "corrupt image", "image count differs", "image too large", "image outside its root",
    "missing image", "malformed record",
}  # fmt: skip


def test_a_mixture_with_a_tenth_corrupt_trains_and_reports_each(config, folder, capsys):
    train(config)
    skipped = read_metrics(folder / "instruct")[-1]["skipped"]
    assert set(skipped) == CAUSES
    printed = capsys.readouterr().out.replace("(first: sample ", "(first: ")
    for cause, count in skipped.items():
        samples = "sample" if count == 1 else "samples"
        assert f"skipped {count} {samples}: {cause} (first: {folder / 'data.jsonl'}:" in printed


def test_beyond_the_limit_the_run_stops(config):
    config.data.skip_limit = 0.01
    config.training.steps = 40
    with pytest.raises(UserError, match="data.skip_limit: .* more than 1%"):
        train(config)
    [checkpoint] = (Path(config.output) / "checkpoints").iterdir()  # nothing is lost
    done = int(checkpoint.name.removeprefix("step-"))
    goes_on = dataclasses.replace(config.data, skip_limit=1.0)
    train(dataclasses.replace(config, data=goes_on, resume=True))
    assert 0 < done < 40 == read_metrics(Path(config.output))[-1]["step"]


def encode(config, folder, *options: str):
    save_config(config, folder / "run.yaml")
    assert main(["encode", str(folder / "run.yaml"), "--output", str(folder / "f"), *options]) == 0


def losses(metrics: list[dict]) -> torch.Tensor:
    return torch.tensor([[line["text_loss"], line["visual_cosine"]] for line in metrics])


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-3), ("int8", 5e-3)])
def test_cached_features_train_as_live_ones_and_never_run_the_encoder(
    config, folder, monkeypatch, capsys, dtype, tolerance
):
    train(config)
    live = read_metrics(folder / "instruct")
    encode(config, folder, "--dtype", dtype)
    printed = capsys.readouterr().out
    assert "holds 2 images as " + dtype in printed and "1 - cosine to fp32: mean" in printed
    assert (
        main(["encode", str(folder / "run.yaml"), "--output", str(folder / "f"), "--verify"]) == 0
    )

    def never(*_):
        raise AssertionError("the encoder was run")

    monkeypatch.setattr(SiglipEncoder, "forward", never)
    monkeypatch.setattr(SiglipEncoder, "preprocess", never)
    config.output = str(folder / "cached")
    config.data.features = str(folder / "f")
    train(config)
    cached = read_metrics(folder / "cached")
    torch.testing.assert_close(losses(cached), losses(live), rtol=0, atol=tolerance)
    # The same samples are bad, though a picture is not decoded for training any more.
    assert cached[-1]["skipped"].keys() - {"feature missing"} <= CAUSES
    assert cached[-1]["skipped"]["feature missing"] > 0  # what could not be encoded


def test_a_dry_run_shows_cached_pictures(config, folder, capsys):
    encode(config, folder)
    config.data.features = str(folder / "f")
    save_config(config, folder / "run.yaml")
    assert main(["train", str(folder / "run.yaml"), "--dry-run"]) == 0
    assert "[picture 1: cached, 4 tokens]" in capsys.readouterr().out


def chat_encoder(stage: LanguageStage) -> ChatEncoder:
    return ChatEncoder(stage.tokenizer, stage.module.config.tokens_per_image)


def test_packed_losses_are_those_of_each_document_alone(config):
    config.data = DataConfig(source="toy_scenes", kinds=ALL_KINDS, row_length=256)
    stage = LanguageStage(config, torch.device("cpu"))
    documents = Documents(ToyScenes(0, ALL_KINDS, 0), chat_encoder(stage), 256)
    stream = RowStream(documents, pad_id=stage.module.config.pad_id)
    packed = [next(stream) for _ in range(3)]
    indices = [int(name.split("-")[3]) for row in packed for name in row.sample_ids]
    alone = []
    for index in indices:
        document = documents.document(index)
        alone.append(pack_row([document], len(document), stream.pad_id))
    counts = TargetCounts.of(packed)
    assert counts.visual > 0 and len(alone) > 2 * len(packed)

    def total(rows):
        parts = [
            batch_losses(stage.module, Batch.of(row, stage.module.vision, CPU), counts)[0]
            for row in rows
        ]
        return torch.stack([torch.stack([p.text, p.visual]).detach() for p in parts]).sum(0)

    torch.testing.assert_close(total(packed), total(alone), rtol=0, atol=1e-5)


def test_lanes_open_as_the_data_section_says(config):
    stage = LanguageStage(config, torch.device("cpu"))
    pad_id, vision = stage.module.config.pad_id, stage.module.vision
    source = open_source(config.data, 0)
    documents = open_documents(config.data, source, chat_encoder(stage), vision)
    lanes = Lanes(documents, pad_id, 4, 1, 2)
    assert list(lanes.streams) == [1, 3]
    assert {len(row.token_ids) for row in lanes.next_rows()} == {256}
