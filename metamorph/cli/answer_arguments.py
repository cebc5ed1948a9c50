"""Options of the verbs that talk to a model: which model, and how it answers.

`generate`, `chat` and `serve` share them, so that an option means the same wherever it stands:
`add_model_arguments` and `open_assistant` for the model, `add_answer_arguments` and `settings_of`
for its answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from metamorph.cli.arguments import number, whole
from metamorph.config.keys import (
    MAX_SEED,
    DecoderAttention,
    DecoderGroupNorm,
    DecoderPrecision,
    Fp8Backend,
    Precision,
    PrefillAttention,
)
from metamorph.decoder.samplers import SAMPLERS
from metamorph.errors import UserError

if TYPE_CHECKING:  # `--help` answers at once
    from metamorph.generation.assistant import Assistant
    from metamorph.generation.settings import AnswerSettings, DrawingSettings

MOST_DRAWING_STEPS = 1000


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--decoder`, `--device`, and how it computes."""
    parser.add_argument(
        "--model", type=Path, default=Path("runs/quickstart/model"), metavar="FOLDER",
        help="model folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--decoder", type=Path, metavar="FOLDER",
        help="folder of a decoder that draws (default: decoder/ in the model folder)",
    )  # fmt: skip
    parser.add_argument(
        "--decoder-precision", choices=get_args(DecoderPrecision), default="fp32",
        help="what the decoder computes in (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--decoder-attention", choices=get_args(DecoderAttention),
        help="a library that attends in a diffusion decoder (default: PyTorch)",
    )  # fmt: skip
    parser.add_argument(
        "--decoder-group-norm", choices=get_args(DecoderGroupNorm),
        help="a library for the group norms of a diffusion decoder (default: PyTorch)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp32",
        help="arithmetic of the language model, as in training (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--fp8-backend", choices=get_args(Fp8Backend), default="torchao",
        help="who computes float8 products (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=("int8", "float8"), default="",
        help="keep the weights of the language model in 8 bits (default: as they are)",
    )  # fmt: skip
    parser.add_argument(
        "--prefill-attention", choices=get_args(PrefillAttention), default="auto",
        help="fp8 attends in float8 where a prompt is read from its beginning (default: auto)",
    )  # fmt: skip


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """How text is chosen, how long an answer may be, and how its pictures are drawn."""
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="INT",
        help="longest answer, a picture's tokens included (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-images", type=whole(0), metavar="INT",
        help="most pictures of an answer (default: as many as there is room for)",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=number(), default=0.0, metavar="FLOAT",
        help="of text; 0 always takes the likeliest token (default)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=whole(1), metavar="INT",
        help="only the likeliest so many tokens, above temperature 0 (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--top-p", type=number(above_zero=True, most=1), metavar="FLOAT",
        help="only the likeliest tokens that together are so probable (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--min-p", type=number(most=1), metavar="FLOAT",
        help="only tokens at least this share as probable as the likeliest (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", type=number(above_zero=True), default=1.0, metavar="FLOAT",
        help="above 1, tokens that have come before become less likely (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="the answer ends before this, repeat for several",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="INT",
        help="of text and drawing noise (default: %(default)s)",
    )  # fmt: skip
    add_drawing_arguments(parser, "the decoder's")


def add_drawing_arguments(parser: argparse._ActionsContainer, default: str) -> None:
    """How a decoder draws; `default` says in words whose settings hold without them."""
    parser.add_argument(
        "--drawing-steps", type=whole(1, MOST_DRAWING_STEPS), metavar="INT",
        help=f"denoising steps (default: {default})",
    )  # fmt: skip
    parser.add_argument(
        "--sampler", choices=tuple(SAMPLERS), help=f"diffusers' scheduler (default: {default})"
    )
    parser.add_argument(
        "--guidance", type=number(), metavar="FLOAT", help=f"guidance scale (default: {default})"
    )
    parser.add_argument(
        "--guidance-rescale", type=number(most=1), default=0.0, metavar="FLOAT",
        help="how much of the contrast that guidance adds is taken back (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-interval", type=number(most=1), nargs=2, default=(0.0, 1.0),
        metavar=("START", "END"),
        help="guide in this part of the way, from noise (0) to picture (1), alone (default: all)",
    )  # fmt: skip


def add_system_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="what the model is told before any question"
    )


def add_context_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context", type=whole(2), metavar="INT",
        help="most tokens of a conversation with its answer (default: what the model has "
        "positions for, 8192 at most)",
    )  # fmt: skip


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """How long a conversation may be, and how its own pictures are read."""
    add_context_argument(parser)
    parser.add_argument(
        "--reencode", action="store_true",
        help="in later turns read the model's own pictures from their pixels, not as it predicted "
        "them",
    )  # fmt: skip


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for options of sampling where nothing is sampled."""
    for option in ("top_k", "top_p", "min_p"):
        if getattr(arguments, option) is not None and not arguments.temperature:
            name = option.replace("_", "-")
            raise UserError(
                f"--{name}: temperature 0 takes the likeliest token anyway; give --temperature too"
            )


def settings_of(arguments: argparse.Namespace) -> AnswerSettings:
    """What `add_answer_arguments` read."""
    from metamorph.generation.settings import AnswerSettings, Sampling

    return AnswerSettings(
        max_new_tokens=arguments.max_new_tokens,
        max_images=arguments.max_images,
        stop=tuple(arguments.stop),
        sampling=Sampling(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            repetition_penalty=arguments.repetition_penalty,
            seed=arguments.seed,
        ),
        drawing=drawing_settings_of(arguments),
    )


def drawing_settings_of(arguments: argparse.Namespace) -> DrawingSettings:
    """What `add_drawing_arguments` read. Raises `UserError` for an interval that ends before it
    begins."""
    from metamorph.generation.settings import DrawingSettings

    return DrawingSettings(
        num_inference_steps=arguments.drawing_steps,
        guidance_scale=arguments.guidance,
        guidance_rescale=arguments.guidance_rescale,
        guidance_interval=tuple(arguments.guidance_interval),
        scheduler=arguments.sampler,
    )


def open_assistant(
    arguments: argparse.Namespace,
    slots: int,
    *,
    preview_decoder: Path | None = None,
    open_when_needed: bool = False,
) -> Assistant:
    """The model of `add_model_arguments`, on its device, for so many answers at once, each of
    `--context` tokens. Raises `UserError`.

    `preview_decoder` and, for one answer, `open_when_needed`: see `Assistant.from_pretrained`.
    """
    from metamorph.decoder.libraries import DecoderOptions
    from metamorph.devices import resolve_device
    from metamorph.generation.assistant import Assistant
    from metamorph.generation.engine import EngineOptions

    return Assistant.from_pretrained(
        arguments.model,
        resolve_device(arguments.device),
        decoder=arguments.decoder,
        preview_decoder=preview_decoder,
        decoder_options=DecoderOptions(
            arguments.decoder_precision, arguments.decoder_attention, arguments.decoder_group_norm
        ),
        precision=arguments.precision,
        fp8_backend=arguments.fp8_backend,
        weights=arguments.weights,
        options=EngineOptions(
            slots=slots,
            context=arguments.context,
            prefill_attention=arguments.prefill_attention,
        ),
        open_when_needed=open_when_needed,
    )
