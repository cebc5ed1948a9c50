"""What a run tells of itself while it goes on: progress bar, metrics.jsonl, trackers, pictures."""

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from metamorph.config import RunConfig
from metamorph.monitor.metrics_file import MetricsFile
from metamorph.monitor.trackers import open_trackers

VALIDATED = {  # what is told of a look at `data.validation`, of those losses that the stage has
    "validation_denoising_loss": "loss",
    "validation_distillation_loss": "loss",
    "validation_pixel_error": "pixels",
    "validation_feature_error": "features",
    "validation_text_loss": "text",
    "validation_visual_l1": "L1",
    "validation_visual_cosine": "cosine",
}


class Reports:
    """Of the first process, which writes for all. Used as a context manager.

    `done` of `total`: how far the run is, in steps, or in samples for a run of epochs.
    """

    def __init__(self, config: RunConfig, first_step: int, done: int, total: int):
        self.folder = Path(config.output)
        self.metrics = MetricsFile(self.folder, first_step)
        self.trackers = open_trackers(config, first_step)
        unit = "sample" if config.training.epochs else "step"
        self.bar = tqdm(desc=config.stage, unit=unit, total=total, initial=done, mininterval=1)
        self.skipped: dict[str, tuple[int, str]] = {}

    def step_done(self, done: int) -> None:
        self.bar.update(done - self.bar.n)

    def log(
        self,
        step: int,
        values: dict[str, float],
        words: str,
        skipped: dict[str, tuple[int, str]],
        bad_steps: list[dict],
    ) -> None:
        """One line: its values, the same in a few words, and what could not be used so far."""
        self.skipped = skipped
        counts = {cause: count for cause, (count, _) in skipped.items()}
        bad = {"bad_steps": bad_steps} if bad_steps else {}
        self.metrics.write(step=step, **values, **bad, skipped=counts)
        for tracker in self.trackers:
            tracker.write(step, values)
        self.bar.set_postfix_str(words, refresh=False)
        for found in bad_steps:
            self.bar.write(
                f"step {found['step']} was not finite and changed nothing: {found['samples']}"
            )

    def validated(self, step: int, values: dict[str, float], is_best: bool) -> None:
        """A line of what was measured on `data.validation`."""
        self.metrics.write(step=step, **values)
        for tracker in self.trackers:
            tracker.write(step, values)
        told = [f"{word} {values[name]:.3f}" for name, word in VALIDATED.items() if name in values]
        if "validation_visual_cosine" in values:
            told[-1] += f" (mean {values['validation_mean_baseline_cosine']:.3f})"
        best = ", the best so far" if is_best else ""
        self.bar.write(f"step {step}, validation: {', '.join(told)}{best}")

    def say(self, sentence: str) -> None:
        """What a person should know, beside the progress bar."""
        self.bar.write(sentence)

    def show(self, step: int, sheet: Image.Image) -> None:
        """Keeps a sheet of drawings."""
        path = self.folder / "samples" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        sheet.save(path)
        for tracker in self.trackers:
            tracker.show(step, "samples", sheet)

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()
        for cause, (count, example) in self.skipped.items():
            samples = "1 sample" if count == 1 else f"{count} samples"
            print(f"skipped {samples}: {cause} (first: {example})")
