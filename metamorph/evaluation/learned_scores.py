"""FID and CLIP score, which need the weights of other networks: never downloaded, and a sentence
says so where they are not at hand."""

import copy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from metamorph.errors import UserError, in_words, shown, within
from metamorph.folders import check_file, check_folder
from metamorph.libraries import torch_fidelity_absence
from metamorph.model.weights import read_json

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity calls its file
FEATURES = 2048  # of Inception; the covariance of fewer pictures than that is not of full rank


def inception_file(given: Path | None) -> tuple[Path | None, str]:
    """The weights of Inception for FID, `given` or where torch-fidelity keeps them; None, and a
    sentence that says why not, where they are not at hand. `UserError` for given ones that are not
    there, or that nothing here could use."""
    reason = torch_fidelity_absence("cpu")
    if reason is not None:
        if given is not None:
            raise UserError(
                f"--inception: torch-fidelity, which reads it, cannot be used: {reason}"
            )
        return None, (
            f"FID was not measured: it needs torch-fidelity ({reason}; pip install torch-fidelity) "
            f"and the weights of Inception, which nothing downloads unasked"
        )
    if given is not None:
        return check_file(given, "the weights of Inception for FID"), ""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if path.is_file():
        return path, ""
    return None, (
        f"FID was not measured: it needs the weights of Inception, {path} is not there and nothing "
        f"is downloaded unasked; --inception FILE names them elsewhere"
    )


def open_frechet(path: Path, device: torch.device) -> FrechetInceptionDistance:
    """FID by the weights in a file. Raises `UserError` for anything else in it."""
    try:
        # torch-fidelity would run whatever a pickle holds: first it is read as tensors alone.
        torch.load(path, map_location="cpu", weights_only=True)
        metric = FrechetInceptionDistance(
            feature=FEATURES, feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # whatever a file makes of torch.load and of torch-fidelity
        raise UserError(
            f"{path}: these are not the weights of Inception for FID: {in_words(error)}"
        ) from error
    return metric.to(device)


class FrechetDistance:
    """FID between pictures and the drawings of them, by a metric that has seen none yet."""

    def __init__(self, metric: FrechetInceptionDistance):
        self.metric = copy.deepcopy(metric)

    def add(self, drawn: Tensor, real: Tensor) -> None:
        """Pixels [B, 3, H, W] from 0 to 1 of the next drawings and pictures."""
        for pixels, is_real in ((drawn, False), (real, True)):
            levels = (pixels * 255).round().byte()
            self.metric.update(levels.to(self.metric.device), real=is_real)

    def value(self) -> float | None:
        """None for fewer than two pictures, which have no covariance."""
        if self.metric.fake_features_num_samples < 2:
            return None
        return max(self.metric.compute().item(), 0.0)  # rounding may leave less of equal ones


class ClipScore:
    """100 x the cosine of a picture and its caption by a CLIP, at least 0 (arXiv 2104.08718 as
    torchmetrics scales it)."""

    def __init__(self, folder: Path, device: torch.device):
        """A CLIPModel folder of Hugging Face, read from safetensors. Raises `UserError`."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            from transformers import CLIPImageProcessorPil as Preprocessing
        except ImportError:  # before transformers 5.4 the class of Pillow has no suffix
            from transformers import CLIPImageProcessor as Preprocessing

        with within("--clip"):
            kind = read_json(check_folder(folder) / "config.json").get("model_type")
        if kind != "clip":
            raise UserError(f"--clip: {folder} is of model_type {shown(kind)}, expected 'clip'")
        try:
            model, info = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self.preprocess = Preprocessing.from_pretrained(folder, local_files_only=True)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises nothing narrower for what does not fit
            raise UserError(f"--clip: {folder} cannot be opened: {in_words(error)}") from error
        if info["missing_keys"]:  # transformers would go on with random weights
            lacking = min(info["missing_keys"])
            raise UserError(f"--clip: {folder}: its weights lack the tensor {lacking!r}")
        self.model = model.to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: list[Image.Image], captions: list[str]) -> list[float]:
        """Of each picture and its caption, which is cut where CLIP has no more positions."""
        tokens = self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        pixels = self.preprocess(images=pictures, return_tensors="pt")["pixel_values"]
        found = self.model(**tokens, pixel_values=pixels.to(self.device))
        cosines = torch.cosine_similarity(found.image_embeds, found.text_embeds, dim=-1)
        return (100 * cosines.clamp(min=0)).tolist()
