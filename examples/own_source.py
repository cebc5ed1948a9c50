"""MetaMorph's trainer with a source of your own: pictures that are named after what they show.

Goes on from the model that own_loop.py left. Runs unchanged on several GPUs:
torchrun --nproc-per-node 2 examples/own_source.py
"""

from pathlib import Path

from metamorph.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from metamorph.data.conversation import Sample, Turn
from metamorph.data.images import open_image
from metamorph.data.order import shuffled
from metamorph.errors import SampleError
from metamorph.training.loop import train


class NamedPictures:
    """Asks for each picture of a folder, and about it."""

    def __init__(self, folder):
        self.paths = sorted(Path(folder).glob("*.png"))

    def __len__(self):  # samples of an epoch
        return 2 * len(self.paths)

    def sample(self, index):  # indices go on through the epochs
        epoch, place = divmod(index, len(self))
        number, is_request = divmod(shuffled(place, len(self), seed=0, epoch=epoch), 2)
        path = self.paths[number]
        if path.stem.startswith("IMG_"):
            raise SampleError("no caption", f"{path}: its name says nothing of the picture")
        prompt, answer = "<image>What does it show?", path.stem
        if is_request:
            prompt, answer = f"Generate an image of {path.stem}.", "<image>"
        picture = open_image(path, max_pixels=50_000_000)  # SampleError for a broken file
        return Sample(str(path), (Turn("user", prompt), Turn("assistant", answer)), (picture,))


if __name__ == "__main__":
    config = RunConfig(
        stage="instruct",
        output="runs/own_source",
        overwrite=True,
        model=ModelConfig(folder="runs/own_loop/model"),
        data=DataConfig(row_length=256),
        training=TrainingConfig(steps=20, rows_per_step=2, learning_rate=1e-3, log_every=5),
    )
    pictures = NamedPictures(Path(__file__).parent / "pictures")
    print(train(config, source=pictures))  # the folder of the trained model
