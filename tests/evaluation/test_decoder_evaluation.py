"""Decoders are redrawn, measured and compared: perfect ones reach the ceiling, others are named."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from metamorph.cli.command import main
from metamorph.config import ModelConfig
from metamorph.data.toy.scenes import render
from metamorph.decoder.adapter import FeatureAdapter
from metamorph.decoder.pipeline import VisualDecoder
from metamorph.decoder.samplers import sampler
from metamorph.evaluation.checker import ALL_RIGHT, ATTRIBUTES
from metamorph.evaluation.decoders import DrawingOptions, evaluate_decoder
from metamorph.evaluation.held_out_pictures import ToyPictures
from metamorph.generation.settings import DEFAULT_DRAWING
from metamorph.model import assemble
from metamorph.model.encoder_identity import identity
from metamorph.model.siglip import SiglipEncoder
from tests.page_folder import let_draw
from tests.tiny_run import GRID, tiny_diffusion, tiny_one_pass, write_language, write_vision

COUNT = 5
OPTIONS = DrawingOptions(batch=2)


class Copyist:
    """A decoder that draws given pictures, `wrong` of them as another one's."""

    def __init__(self, pictures: list[Image.Image], wrong: int = 0):
        self.pictures, self.drawn, self.wrong = pictures, 0, wrong

    def draw(self, features, *, generator, batch_size, **settings):
        assert len(features) == len(generator) == batch_size
        assert settings == DEFAULT_DRAWING.arguments()
        numbers = range(self.drawn, self.drawn + len(features))
        self.drawn += len(features)
        shift = [int(number < self.wrong) for number in numbers]
        return [
            self.pictures[(number + by) % len(self.pictures)]
            for number, by in zip(numbers, shift, strict=True)
        ]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model folder, a SigLIP folder, and a decoder for the encoder that is in both."""
    folder = tmp_path_factory.mktemp("evaluation")
    language, siglip = write_language(folder / "llama"), write_vision(folder / "siglip")
    model, tokenizer = assemble(language, siglip, grid=GRID)
    let_draw(model)
    model.save_pretrained(folder / "model", tokenizer)
    write_decoder(folder / "decoder", GRID**2, identity(model.encoder))
    write_decoder(folder / "unknown", None, None)
    tiny_one_pass().save_pretrained(folder / "one_pass")
    write_decoder(folder / "nine", 9, identity(SiglipEncoder.from_pretrained(siglip, 3)))
    return folder


def write_decoder(folder, tokens: int | None, encoder: str | None, width: int = 24) -> None:
    vae, unet, noise = tiny_diffusion()
    adapter = FeatureAdapter(width, 16, unet.config.cross_attention_dim)
    VisualDecoder(
        vae, unet, sampler("dpm++", noise.config), adapter, 2.0, 2, tokens, encoder
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def vision(parts):
    return SiglipEncoder.from_pretrained(parts / "siglip", GRID)


def pictures(count: int = COUNT) -> list[Image.Image]:
    return [one.picture for one in ToyPictures(count)]


def test_a_decoder_that_copies_reaches_the_ceiling(vision):
    scores = evaluate_decoder(Copyist(pictures()), vision, ToyPictures(COUNT), OPTIONS, shown=2)
    own, ceiling = scores.own.summary(0), scores.original.summary(0)
    for key in ("pictures", "cosine", "shuffled_cosine", "psnr", "identical", "ssim", "attributes"):
        assert own[key] == ceiling[key], key
    assert own["pictures"] == own["identical"] == COUNT and own["psnr"] is None
    assert own["cosine"]["mean"] == pytest.approx(1, abs=1e-5)
    assert own["cosine_to_given"] == own["cosine"]
    assert own["ssim"]["mean"] == pytest.approx(1)
    assert own["shuffled_cosine"]["mean"] < own["cosine"]["mean"] - 1e-3
    assert own["attributes"].keys() == {*ATTRIBUTES, ALL_RIGHT}
    assert all(right["mean"] == 1 for right in own["attributes"].values())
    assert own["seconds_per_picture"] > 0 and ceiling["seconds_per_picture"] is None
    assert own["fid"] is own["clip_score"] is None
    assert scores.own.shown == dict(enumerate(pictures(2)))


def test_a_wrong_drawing_costs_its_share(vision):
    scores = evaluate_decoder(Copyist(pictures(), 1), vision, ToyPictures(COUNT), OPTIONS)
    own, ceiling = scores.own.summary(0), scores.original.summary(0)
    assert own["identical"] == COUNT - 1 and own["psnr"]["count"] == 1
    first, second = (torch.tensor([*p.tobytes()]) / 255 for p in pictures(2))
    expected = -10 * math.log10((first - second).square().mean())
    assert own["psnr"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert own["attributes"][ALL_RIGHT]["mean"] == pytest.approx(1 - 1 / COUNT)
    assert own["cosine"]["mean"] < ceiling["cosine"]["mean"]


def test_predicted_features_are_measured_beside_the_picture_and_what_was_given(vision):
    real = [vision(vision.preprocess([picture]))[0] for picture in pictures()]
    given = [-real[0], None, *real[2:]]
    decoder = Copyist(pictures())
    scores = evaluate_decoder(
        # It draws batches of own and predicted features in turn: each copies what comes next.
        decoder, vision, ToyPictures(COUNT), replace(OPTIONS, batch=COUNT), predicted=given
    )  # fmt: skip
    found = scores.predicted.summary(0)
    assert (found["pictures"], found["undrawn"]) == (COUNT - 1, 1)
    assert found["attributes"]["colour"]["count"] == COUNT  # what was not drawn is not right
    assert found["attributes"][ALL_RIGHT]["mean"] <= 1 - 1 / COUNT
    assert found["cosine_to_given"]["mean"] < found["cosine"]["mean"]


def evaluate(folder, *arguments: object) -> int:
    return main(["evaluate", "--count", "3", "--device", "cpu", *map(str, arguments)])


def test_the_verb_compares_decoders_and_says_what_it_did(parts, tmp_path, capsys):
    decoders = ["--decoder", parts / "decoder", "--decoder", parts / "nine"]
    output = tmp_path / "out"
    command = [*decoders, "--model", parts / "model", "--output", output, "--seed", 7, "--shown", 2]
    assert evaluate(parts, *command) == 0
    report = json.loads((output / "evaluation.json").read_text())
    assert report["command"].startswith("metamorph evaluate --count 3 --device cpu --decoder ")
    assert (
        report["seed"] == 7 and {"torch", "diffusers", "torchmetrics"} <= report["versions"].keys()
    )
    first, second = report["decoders"]
    assert (first["tokens_per_image"], second["tokens_per_image"]) == (4, 9)
    assert {"own", "predicted", "original"} <= first.keys() and "predicted" not in second
    for scores in (first["own"], first["predicted"], second["own"]):
        assert scores["pictures"] == 3 and scores["cosine"]["low"] <= scores["cosine"]["mean"]
    said = capsys.readouterr().out
    notes = report["notes"]
    assert [note in said for note in notes] == [True] * len(notes)
    assert any(note.startswith("FID was not measured: ") for note in notes)
    assert any(note.startswith("CLIP score was not measured: ") for note in notes)
    assert any("nine was drawn from own features alone: it takes 9" in note for note in notes)
    for words in ("own features", "predicted features", "the originals", "shuffled", "s/picture"):
        assert words in said
    sheet = Image.open(output / "samples.png")
    assert sheet.width > 4 * 160  # the original, two kinds of the first, one of the second


def test_a_one_pass_decoder_stands_beside_a_diffusion_decoder(parts, tmp_path, capsys):
    decoders = ["--decoder", parts / "one_pass", "--decoder", parts / "decoder"]
    arguments = [*decoders, "--vision", parts / "siglip", "--drawing-steps", 1]
    assert evaluate(parts, *arguments, "--output", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [found["kind"] for found in report["decoders"]] == ["rae", "diffusion"]
    assert [found["own"]["pictures"] for found in report["decoders"]] == [3, 3]
    note = f"{parts / 'one_pass'} draws in one pass: --drawing-steps, --sampler and guidance are"
    assert any(said.startswith(note) for said in report["notes"])
    assert note in capsys.readouterr().out


def test_a_seed_repeats_every_number_but_the_seconds(parts, tmp_path):
    def scores(name: str, seed: int) -> dict:
        assert evaluate(
            parts, "--decoder", parts / "decoder", "--vision", parts / "model", "--seed", seed,
            "--batch", {"a": 1, "b": 3, "c": 3}[name], "--output", tmp_path / name,
        ) == 0  # fmt: skip
        own = json.loads((tmp_path / name / "evaluation.json").read_text())["decoders"][0]["own"]
        del own["seconds_per_picture"]
        return own

    first, again, other = scores("a", 1), scores("b", 1), scores("c", 2)
    assert first["psnr"]["mean"] == pytest.approx(again["psnr"]["mean"], abs=1e-3)
    assert first["psnr"]["mean"] != pytest.approx(other["psnr"]["mean"], abs=1e-3)


def test_pictures_that_cannot_be_read_are_counted(parts, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, one in enumerate(ToyPictures(2)):
        render(one.scene).resize((90, 50)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    arguments = ["--decoder", parts / "unknown", "--vision", parts / "model", "--data", folder]
    assert evaluate(parts, *arguments, "--output", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert report["data"]["pictures"] == 2 and report["data"]["skipped"] == {"corrupt image": 1}
    assert report["decoders"][0]["own"]["attributes"] == {}
    assert report["decoders"][0]["tokens_per_image"] == GRID**2  # as the model folder has it
    assert "skipped 1 of 3 samples: corrupt image (first: " in capsys.readouterr().out


def fails(capsys, parts, *arguments) -> str:
    assert evaluate(parts, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("metamorph: ")
    return error


def test_what_does_not_fit_is_one_sentence(parts, tmp_path, capsys):
    new = "--output", tmp_path / "new"
    write_vision(tmp_path / "other", patch=8)
    write_vision(tmp_path / "wide", width=32)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    decoder = "--decoder", parts / "decoder"
    known = *decoder, "--vision", parts / "siglip"

    assert "of another encoder than" in fails(
        capsys, parts, *decoder, "--vision", tmp_path / "other", *new
    )
    assert "features of width 24, but those of" in fails(
        capsys, parts, *decoder, "--vision", tmp_path / "wide", *new
    )
    assert "holds no picture" in fails(capsys, parts, *known, *new, "--data", tmp_path / "empty")
    said = fails(capsys, parts, *known, *new, "--data", tmp_path / "bad")
    assert "no picture of" in said and "a.png" in said
    assert "expected a new or an empty folder" in fails(
        capsys, parts, *known, "--output", tmp_path / "full"
    )
    assert "gone does not exist" in fails(
        capsys, parts, "--decoder", parts / "gone", "--vision", parts / "siglip", *new
    )
    assert "without a word" in fails(
        capsys, parts, *decoder, "--model", parts / "model", *new, "--data", tmp_path / "bad"
    )
    assert "--inception: torch-fidelity, which reads it" in fails(
        capsys, parts, *known, *new, "--inception", tmp_path / "gone.pth"
    )
    assert "--clip" in fails(capsys, parts, *known, *new, "--clip", tmp_path / "empty")
    assert not (tmp_path / "new").exists()


def test_tokens_that_fill_no_square_are_refused(parts, tmp_path, capsys):
    write_decoder(tmp_path / "five", 5, None)
    said = fails(
        capsys, parts, "--decoder", tmp_path / "five", "--vision", parts / "siglip",
        "--output", tmp_path / "new",
    )  # fmt: skip
    assert "pictures of 5 tokens, which fill no square" in said
    assert ModelConfig().grid == 8  # where neither decoder nor model say


def test_a_missing_library_is_named(parts, tmp_path, capsys, monkeypatch):
    from metamorph import libraries

    monkeypatch.setattr(libraries, "installed", lambda package: package != "torchmetrics")
    said = fails(
        capsys, parts, "--decoder", parts / "decoder", "--vision", parts / "siglip",
        "--output", tmp_path / "new",
    )  # fmt: skip
    assert "metamorph evaluate cannot be used here (torchmetrics: not installed)" in said
