"""The model card of a folder: README.md as the Hugging Face Hub reads it."""

from collections.abc import Sequence
from pathlib import Path

from metamorph.disk import write_text
from metamorph.errors import UserError
from metamorph.evaluation.report_comparison import read_report
from metamorph.folders import check_folder
from metamorph.model.unified import MetaMorphConfig

PAPER = "https://arxiv.org/abs/2412.14164"
FILE = "README.md"
USE = """\
```python
from metamorph import register_with_transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

register_with_transformers()
model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
```

`metamorph chat --model FOLDER` talks to a downloaded copy, and draws where a decoder is in it."""


def write_model_card(
    folder: Path,
    name: str,
    license_id: str,
    data: str,
    *,
    bases: Sequence[str] = (),
    reports: Sequence[Path] = (),
) -> Path:
    """Writes README.md into a model folder, and returns its path.

    Args:
        folder: as `MetaMorph.save_pretrained` writes it.
        name: of the model on the Hub.
        license_id: of the weights, as the Hub names it, such as apache-2.0.
        data: what it was trained on, in Markdown.
        bases: models on the Hub that it was made of.
        reports: evaluation.json of this model, by `metamorph evaluate --model`.

    Raises `UserError` for a folder that is no model or has a card, and for other reports.
    """
    from huggingface_hub import ModelCardData

    MetaMorphConfig.read(check_folder(folder))
    path = folder / FILE
    if path.exists():
        raise UserError(f"{path} exists, expected a folder without a model card")
    head = ModelCardData(
        license=license_id,
        base_model=list(bases) or None,
        library_name="metamorph",  # without it transformers does not know the model
        pipeline_tag="image-text-to-text",
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {name}",
        f"A [MetaMorph]({PAPER}): a language model that reads pictures, and predicts the visual "
        "features of pictures among its words.",
        "## Use",
        USE.format(name=name),
        "## Training data",
        data,
    ]
    if reports:
        parts.append("## Evaluation")
        parts += map(_evaluation, reports)
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _evaluation(path: Path) -> str:
    """A table of all measures of a report, and how they were made. Raises `UserError`."""
    report = read_report(path)
    lines = ["| suite | measure | samples | mean | 95 % interval |", "|---|---|---:|---:|---|"]
    try:
        for suite, found in report["suites"].items():
            scores = [sample["scores"] for sample in found["samples"]]
            right = {name for of in scores for name, value in of.items() if isinstance(value, bool)}
            for measure, mean in found["measures"].items():
                is_share = measure in right or "p" in mean  # or a difference of two
                value, low, high = (
                    f"{100 * mean[key]:.1f}%" if is_share else f"{mean[key]:.3f}"
                    for key in ("mean", "low", "high")
                )
                cells = suite, measure, str(mean["count"]), value, f"{low} to {high}"
                lines.append(f"| {' | '.join(cells)} |")
        made = f"Made by `{report['command']}`, seed {report['seed']}, on {report['device']}."
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not as metamorph evaluate writes it: {error!r}") from error
    return "\n".join([*lines, "", made])
