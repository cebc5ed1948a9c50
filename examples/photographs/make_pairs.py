"""A few hundred captioned pictures, cut out of the photographs that two Python packages carry.

    python examples/photographs/make_pairs.py data/photographs

Writes pictures, pairs.jsonl, held_out.jsonl and mixtures of both: each picture is asked about, and
drawn. Fourteen photographs are no world: what learns of them knows these, not photographs.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from random import Random

from PIL import Image

from metamorph.errors import UserError

CAPTIONS = Path(__file__).parents[1] / "evaluation" / "photographs.jsonl"
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}  # of the packages scikit-image, -learn
MORE = {  # of either package, beside those of CAPTIONS
    "china.jpg": "a red and green pagoda above a lake",
    "flower.jpg": "an orange dahlia before dark leaves",
    "moon.png": "craters of the moon, in black and white",
    "motorcycle_left.png": "a red motorcycle in a garage",
}
HELD_OUT = 8  # of so many patches of a photograph the last is never trained on
MIXTURE = """\
questions: {{weight: 1, family: conversations, path: {0}.jsonl}}
drawings: {{weight: 1, family: captions, path: {0}.jsonl}}
"""


def photographs() -> list[tuple[Path, str]]:
    """Files of the two packages, and what each shows. UserError for a package that is absent."""
    lines = map(json.loads, CAPTIONS.read_text(encoding="utf-8").splitlines())
    captions = {line["image"]: line["caption"] for line in lines} | MORE
    folders = []
    for package, folder in FOLDERS.items():
        spec = find_spec(package)  # which imports nothing of it
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is absent: pip install scikit-image scikit-learn")
        folders.append(Path(spec.origin).parent / folder)
    found = [
        (folder / name, said)
        for name, said in captions.items()
        for folder in folders
        if (folder / name).is_file()
    ]
    if len(found) != len(captions):
        raise UserError(f"{len(found)} of {len(captions)} photographs are in {folders}")
    return found


def patch(picture: Image.Image, choose: Random) -> Image.Image:
    """A square of half the shorter side or more, wherever it lies, mirrored or not."""
    side = choose.randint(min(picture.size) // 2, min(picture.size))
    left, top = (choose.randint(0, length - side) for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    if choose.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return square.resize((384, 384), Image.Resampling.LANCZOS)


def record(name: str, caption: str) -> dict:
    """What both families of the mixture read."""
    turns = {"human": "<image>\nWhat does the picture show?", "gpt": f"It shows {caption}."}
    conversation = [{"from": who, "value": value} for who, value in turns.items()]
    return {"image": name, "caption": caption, "conversations": conversation}


def write_pairs(output: Path, per_photograph: int) -> dict[str, int]:
    """Writes the folder; how many pictures each file has."""
    records: dict[str, list[dict]] = {"pairs": [], "held_out": []}
    for path, caption in photographs():
        choose = Random(path.name)  # the same patches wherever and whenever they are cut
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        for number in range(per_photograph):
            name = f"pictures/{path.stem}-{number:02}.jpg"
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            patch(picture, choose).save(output / name, quality=92)
            kind = "held_out" if number % HELD_OUT == HELD_OUT - 1 else "pairs"
            records[kind].append(record(name, f"a detail of {caption}"))
    for kind, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (output / f"{kind}.jsonl").write_text(text, encoding="utf-8")
        (output / f"{kind}.yaml").write_text(MIXTURE.format(kind), encoding="utf-8")
    return {kind: len(lines) for kind, lines in records.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--per-photograph", type=int, default=24, help="patches")
    arguments = parser.parse_args()
    try:
        counts = write_pairs(arguments.output, arguments.per_photograph)
    except UserError as error:
        parser.error(str(error))
    print(f"{arguments.output}: {counts['pairs']} pictures, {counts['held_out']} held out")
