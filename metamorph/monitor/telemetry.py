"""What a training step reports beside its losses: the visual baseline, speed and memory."""

import resource
import time
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from metamorph.data.packing import PackedRow
from metamorph.model.unified import MetaMorph
from metamorph.training.flops import Workload, encoder_flops, language_flops, trained_parts
from metamorph.training.hardware import GPUS

GIGA, TERA = 1e9, 1e12


class MeanBaseline:
    """Cosine reached by always predicting the mean feature of each token position.

    A visual cosine means nothing beside this number: it is what a model gets that ignores its
    prompt. The means run over ``total``, the sum of all targets seen so far; a step is scored
    before its targets are added.
    """

    def __init__(self, tokens_per_image: int, width: int, device: torch.device | str = "cpu"):
        self.total = torch.zeros(tokens_per_image, width, device=device)

    def score(self, targets: Tensor) -> Tensor:
        """The baseline's mean cosine on targets [images, tokens, C], unit vectors."""
        mean = F.normalize(self.total, dim=-1)
        return (targets.float() * mean).sum(-1).mean()


class Meter:
    """Amounts a second since the last reading, of this process: of one GPU."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.started = time.perf_counter()
        self.amounts: Counter[str] = Counter()

    def add(self, **amounts: float) -> None:
        self.amounts.update(amounts)

    def read(self) -> Counter[str]:
        """What was added, by name, divided by the time; 0 for what was not."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = Counter({name: amount / seconds for name, amount in self.amounts.items()})
        self.reset()
        return rates


class StepWork:
    """What steps of packed rows amount to, for ``Meter``: tokens, pictures, operations.

    Operations are those of ``flops.FORMULA``: of the model, without what is computed twice to save
    memory. The encoder's are apart.
    """

    def __init__(self, model: MetaMorph):
        self.config, self.vision = model.config, model.vision
        self.trained = trained_parts(model)

    def of(self, rows: list[PackedRow]) -> dict[str, float]:
        works = [Workload.of(row, self.config.tokens_per_image) for row in rows]
        work = sum(works, start=Workload())
        visual = work.images * self.config.tokens_per_image
        encoded = sum(len(row.images) for row in rows if row.features is None)
        flops = language_flops(self.config, work, self.trained)
        encoder = encoder_flops(self.vision.config, encoded, len(self.vision.tokens_read))
        return {
            "text_tokens": sum(row.used for row in rows) - visual,
            "visual_tokens": visual,
            "images": work.images,
            "teraflops": sum(part.total for part in flops.values()) / TERA,
            "encoder_teraflops": encoder.total / TERA,
        }


def peak_teraflops(device: torch.device, precision: str) -> float | None:
    """The dense peak of a GPU by its data sheet, or None for a device that is in no table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper().replace("-", " ")
    known = {key: gpu for key, gpu in GPUS.items() if key.upper() in name.split()}
    return next((gpu.teraflops.get(precision) for gpu in known.values()), None)


def peak_gigabytes(device: torch.device) -> float:
    """The most memory that was held so far: of a GPU by tensors, of the host by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA
