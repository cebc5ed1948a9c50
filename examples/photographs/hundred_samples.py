"""A hundred samples to try things with: details of photographs, and drawings of the toy world.

    python examples/photographs/hundred_samples.py data/hundred

Writes pictures, samples.jsonl (half of the samples ask about their picture, half draw it) and
LICENCES.md. The photographs are those of two Python packages, scikit-image and scikit-learn, whose
files say that they may be passed on; the drawings are made here.
"""

import argparse
import json
from pathlib import Path
from random import Random

from make_pairs import patch, photographs
from PIL import Image

from metamorph.data.conversation import ASSISTANT
from metamorph.data.images import opened
from metamorph.data.toy.english.wording import English
from metamorph.data.toy.source import ToyScenes
from metamorph.errors import UserError

PATCHES, DRAWINGS = 5, 40  # of each of twelve photographs; together a hundred
PUBLIC_DOMAIN = "no known copyright restrictions, public domain"
CC0 = "CC0 1.0"
CC_BY = (
    "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/; cut out, mirrored and resized here"
)
LICENCES = {  # photograph: of whom, and its licence, as the packages say
    "astronaut.png": ("NASA, Great Images database", PUBLIC_DOMAIN),
    "brick.png": ("CC0Textures, Bricks25", CC0),
    "camera.png": ("Lav Varshney", CC0),
    "chelsea.png": ("Stefan van der Walt", CC0),
    "china.jpg": ("danielbuechele, https://www.flickr.com/photos/danielbuechele/", CC_BY),
    "coffee.png": ("Rachel Michetti, Pikolo Espresso Bar", CC0),
    "coins.png": ("Brooklyn Museum", "no known copyright restrictions"),
    "flower.jpg": ("vultilion, https://www.flickr.com/photos/vultilion/", CC_BY),
    "grass.png": ("linolafett, DeviantArt", CC0),
    "gravel.png": ("CC0Textures, Gravel04", CC0),
    "hubble_deep_field.jpg": ("NASA, hubblesite.org", "may be freely used, public domain"),
    "rocket.jpg": ("SpaceX", "released into the public domain"),
}


def conversation(asked: str, answered: str) -> list[dict]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]


def of_photographs(output: Path) -> list[dict]:
    """Details of photographs, asked about and drawn in turn."""
    records = []
    for path, caption in photographs():
        if path.name not in LICENCES:
            continue  # what its package says of it is not enough
        choose = Random(f"hundred {path.name}")
        with Image.open(path) as stored:
            picture = stored.convert("RGB")
        for number in range(PATCHES):
            name = f"pictures/{path.stem}-{number}.jpg"
            patch(picture, choose).save(output / name, quality=88)
            detail = f"a detail of {caption}"
            turns = conversation("<image>\nWhat does the picture show?", f"It shows {detail}.")
            if len(records) % 2:
                turns = conversation(f"Generate an image of {detail}.", "Here it is: <image>")
            records.append({"id": name, "image": name, "conversations": turns})
    return records


def of_drawings(output: Path) -> list[dict]:
    """Scenes of the toy world in English, half of them questions."""
    scenes = ToyScenes(0, {"question": 1.0, "draw": 1.0}, DRAWINGS, English())
    records = []
    for number in range(DRAWINGS):
        sample = scenes.sample(number)
        names = []
        for place, picture in enumerate(sample.images):
            names.append(f"pictures/drawing-{number:02}-{place}.png")
            opened(picture).save(output / names[-1])
        turns = [
            {"from": "gpt" if turn.role == ASSISTANT else "human", "value": turn.text}
            for turn in sample.turns
        ]
        records.append({"id": f"drawing-{number:02}", "image": names, "conversations": turns})
    return records


def licences() -> str:
    rows = [f"| {name} | {whose} | {licence} |" for name, (whose, licence) in LICENCES.items()]
    return "\n".join([
        "# Licences of these pictures",
        "",
        "Each picture is a square cut out of the photograph that its name begins with, as the",
        "packages scikit-image and scikit-learn carry it; what is said here is what they say.",
        "",
        "| photograph | of | licence |",
        "|---|---|---|",
        *rows,
        "",
        "The drawings, `drawing-*`, and the words are of the program that wrote this folder, under",
        "its licence, Apache-2.0.",
        "",
    ])  # fmt: skip


def write_samples(output: Path) -> int:
    """Writes the folder; how many samples it has."""
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    records = of_photographs(output) + of_drawings(output)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (output / "samples.jsonl").write_text(text, encoding="utf-8")
    (output / "LICENCES.md").write_text(licences(), encoding="utf-8")
    return len(records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        count = write_samples(arguments.output)
    except UserError as error:
        parser.error(str(error))
    print(f"{arguments.output}: {count} samples")
