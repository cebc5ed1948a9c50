"""Which decoder draws best: of both kinds, from 64, 144 and 256 tokens a picture, taught from
features with noise and without.

    python examples/evaluation/decoder_study.py --steps 2000 --output runs/study
    python examples/evaluation/decoder_study.py --steps 2000 --output runs/seen --pictures *.jpg

Trains the twelve of them on toy scenes, or on patches of photographs, evaluates them on others and
leaves OUTPUT/study.md and OUTPUT/evaluation/samples.png. The same command goes on where it was
stopped. Further options are keys of `metamorph train`, such as --decoder.batch_size 16.
"""

import argparse
import json
import shutil
import sys
from itertools import product
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from metamorph.cli.command import main
from metamorph.quickstart.run import ASSETS

RUNS = {  # run file and keys of each kind; the ViT has as many positions as the most tokens
    "diffusion": ["configs/toy/decoder.yaml", "--decoder.base", str(ASSETS / "decoder_base")],
    "rae": ["configs/toy/decoder_rae.yaml", "--decoder.patch_size", "4"],
}
GRIDS = (8, 12, 16)  # tokens a side
NOISES = (0.0, 0.3)  # longest, beside the 1 of a feature
PATCH, LONG_SIDE = 128, 640  # pixels of a patch, and at most of the photograph it is cut from
HEADS = "kind", "tokens", "noise", "cosine", "shuffled", "PSNR", "SSIM", "all right", "s/picture"


def larger_encoder(folder: Path) -> Path:
    """The toy encoder for pictures of twice the size, with positions in between: it has 16 x 16
    patches then, of which 256 tokens can be made."""
    if not folder.exists():
        small = SiglipVisionModel.from_pretrained(ASSETS / "encoder")
        sizes = small.config.to_dict() | {"image_size": 2 * small.config.image_size}
        large, weights = SiglipVisionModel(SiglipVisionConfig(**sizes)), small.state_dict()
        [name] = [name for name in weights if name.endswith("position_embedding.weight")]
        side = small.config.image_size // small.config.patch_size
        grid = weights[name].T.unflatten(1, (side, side))[None]
        weights[name] = F.interpolate(grid, scale_factor=2, mode="bicubic")[0].flatten(1).T
        large.load_state_dict(weights)
        unfinished = folder.with_suffix(".unfinished")
        large.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def claim(output: Path, argv: list[str]) -> None:
    """Keeps the command of a study in its folder, for which no other is from when a checkpoint is
    there on. Before that nothing is worth keeping."""
    asked, here = output / "command.json", json.dumps(argv)
    if asked.exists() and asked.read_text() != here:
        if any(output.glob("*/checkpoints/step-*")):
            raise SystemExit(f"{output} holds the study of another command: {asked.read_text()}")
        shutil.rmtree(output / "patches", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    asked.write_text(here)


def cut(photographs: list[Path], folder: Path) -> None:
    """Patches of photographs below `folder`: `held_out` of every fifth one, `training` of the
    others, where they overlap by half. A photograph is on one side alone."""
    if folder.exists():
        return
    if len(photographs) < 2:
        raise SystemExit("--pictures: it takes two pictures, one to learn from and one to measure")
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, path in enumerate(photographs):
        place = unfinished / ("training" if number % 5 else "held_out")
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((LONG_SIDE, LONG_SIDE))
        step = PATCH // 2 if number % 5 else PATCH
        for top in range(0, picture.height - PATCH + 1, step):
            for left in range(0, picture.width - PATCH + 1, step):
                patch = picture.crop((left, top, left + PATCH, top + PATCH))
                patch.save(place / f"{path.stem}-{top}-{left}.png")
    unfinished.rename(folder)


def run(*arguments: str | Path) -> None:
    """`metamorph ...`; ends the study where that fails."""
    if code := main([*map(str, arguments)]):
        raise SystemExit(code)


def train_all(output: Path, vision: Path, keys: list[str]) -> dict[Path, tuple[str, int, float]]:
    """Folders of trained decoders: their kind, grid and noise."""
    decoders = {}
    for kind, grid, noise in product(RUNS, GRIDS, NOISES):
        folder = output / f"{kind}-{grid**2}-{noise:g}"
        done = folder / "decoder/model_index.json"
        decoders[done.parent] = kind, grid, noise
        if not done.exists():
            begun = any((folder / "checkpoints").glob("step-*"))
            run("train", *RUNS[kind], "--output", folder, "--model.vision", vision,
                "--model.grid", grid, "--decoder.feature_noise", noise, *keys,
                "--resume" if begun else "--overwrite")  # fmt: skip
        if not done.exists():
            raise SystemExit("stopped; the same command goes on")
    return decoders


def row(found: dict, kind: str, grid: int, noise: float) -> list[str]:
    """The cells of a decoder, of its entry in evaluation.json."""

    def cell(value: dict | None, digits: int, scale: int = 1) -> str:
        numbers = [scale * value[name] for name in ("mean", "low", "high")] if value else []
        return "{} ({} to {})".format(*(f"{n:.{digits}f}" for n in numbers)) if value else ""

    own = found["own"]
    right = (own["attributes"] or {}).get("all right")
    scores = [cell(own[name], 3) for name in ("cosine", "shuffled_cosine")]
    scores += [cell(own["psnr"], 1), cell(own["ssim"], 3), cell(right, 1, 100)]
    return [kind, str(grid**2), f"{noise:g}", *scores, f"{own['seconds_per_picture']:.4f}"]


def study(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", required=True, help="training steps of each decoder")
    parser.add_argument("--pictures", type=Path, nargs="+", help="photographs, not toy scenes")
    parser.add_argument("--vision", type=Path, help="SigLIP folder (default: the toy encoder's)")
    parser.add_argument("--count", default="200", help="held-out pictures (default: %(default)s)")
    argv = sys.argv[1:] if argv is None else argv
    options, keys = parser.parse_known_args(argv)
    output, held_out = options.output, []
    claim(output, argv)
    keys = ["--training.steps", options.steps, *keys]
    if options.pictures is not None:
        cut(options.pictures, output / "patches")
        keys += ["--data.source", "pictures", "--data.path", str(output / "patches/training")]
        keys += ["--data.kinds", "{}"]  # which are of scenes
        held_out = ["--data", output / "patches/held_out"]
    vision = options.vision or larger_encoder(output / "encoder")
    decoders = train_all(output, vision, keys)
    evaluation = output / "evaluation"
    if not (evaluation / "evaluation.json").exists():
        named = [part for folder in decoders for part in ("--decoder", folder)]
        run("evaluate", *named, "--vision", vision, *held_out, "--count", options.count,
            "--output", evaluation)  # fmt: skip
    report = json.loads((evaluation / "evaluation.json").read_text())
    rows = [row(found, *decoders[Path(found["decoder"])]) for found in report["decoders"]]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADS, ["---"] * len(HEADS), *rows)]
    count = report["data"]["pictures"]
    head = f"{options.steps} steps each; {count} held-out pictures, with 95 % intervals."
    (output / "study.md").write_text("\n".join([head, "", *lines, ""]))
    print((output / "study.md").read_text())


if __name__ == "__main__":
    study()
