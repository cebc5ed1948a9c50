"""The files of docs/data.md, with pictures and videos of the names that it uses."""

import re
import shutil
from contextlib import chdir
from pathlib import Path

from PIL import Image

from tests.data.data_files import image_bytes, write_video
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs/data.md"
MIXTURE = ROOT / "configs/mixtures/six_families.yaml"


def write_six_families(folder: Path) -> None:
    """Every example of the page below `folder`, beside the shipped mixture that names them."""
    (folder / "images").mkdir(parents=True)
    for name, colour in (("cat", "grey"), ("dog", "brown")):
        data = image_bytes(colour, (64, 48), "JPEG")
        (folder / "images" / f"{name}.jpg").write_bytes(data)
    (folder / "videos" / "clip").mkdir(parents=True)
    for number in range(12):
        frame = Image.new("RGB", (32, 32), (20 * number,) * 3)
        frame.save(folder / "videos" / "clip" / f"{number:04}.png")
    write_video(folder / "videos" / "film.mp4", frames=24)
    for name, text in re.findall(
        r"`(\w+\.jsonl)`:\n\n```json\n(.*?)```", PAGE.read_text(), re.DOTALL
    ):
        (folder / name).write_text(text)
    with chdir(folder):
        for block in blocks(PAGE, "py"):
            exec(compile(block, "docs/data.md", "exec"), {})
    shutil.copy(MIXTURE, folder)
