"""The command line: it parses and calls, nothing more.

Heavy imports wait until a verb needs them, so that ``--help`` answers at once.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from metamorph.arguments import not_negative, whole
from metamorph.config import FP8_BACKENDS, PRECISIONS
from metamorph.config_file import add_config_arguments, load_config, overrides_from_namespace
from metamorph.data.command_line import add_data_verbs, encode_data, validate_data
from metamorph.errors import SampleError, Stopped, UserError

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
GPU_TYPES = ("h100", "h200", "a100")  # those of metamorph.training.hardware
MAX_PIXELS = 50_000_000  # of a picture in a prompt
MAX_SEED = 2**32 - 1

QUICKSTART_HELP = """\
Trains a small MetaMorph on the CPU in minutes, from a random language model: it learns to answer
questions about pictures and to draw captions, and is scored on combinations that it never saw.

  metamorph quickstart
  metamorph quickstart --output runs/again --seed 1

Writes OUTPUT/model (for `metamorph generate`), report.json, samples.png and report.html."""

TRAIN_HELP = """\
Runs one training stage (language, align, instruct or decoder) from a YAML file.
Every key can be overridden:

  metamorph train configs/toy/instruct.yaml --training.steps 100 --output runs/short
  metamorph train configs/toy/instruct.yaml --data.kinds '{question: 1, draw: 1}'
  metamorph train configs/toy/instruct.yaml --resume true
  metamorph train configs/toy/instruct.yaml --dry-run
  metamorph train configs/metamorph_8b/instruct.yaml --dry-run --world-size 256

Writes config.yaml, metrics.jsonl, checkpoints/ and the result (model/ or decoder/) to the run
folder. Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint before they stop it, a second one stops it
at once. Several GPUs: torchrun --nproc-per-node 8 -m metamorph train CONFIG"""

GENERATE_HELP = """\
Asks a trained model. Pictures in the answer are drawn and saved as PNG files.

  metamorph generate "Generate an image of a large red circle at the top left."
  metamorph generate "What colour is the shape?" --image picture.png
  metamorph generate "<image>Make the circle green." --image picture.png --save-to drawings"""


EXPORT_HELP = """\
Writes weights (safetensors), a Llama's config.json and the tokenizer. What loads a Llama finds one
there; projector and vision head lie beside it.

  metamorph export runs/mine/model exported
  metamorph export runs/mine/model exported --format official"""

IMPORT_HELP = """\
Makes a folder for `metamorph train` and `generate` of weights under the official release's names,
or of what `metamorph export` wrote, and of a SigLIP encoder.

  metamorph import weights runs/official --vision siglip-so400m-patch14-384"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metamorph",
        description="Teach a pretrained language model to see and to draw.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    quick = add("quickstart", "train and try a small model on this machine", QUICKSTART_HELP)
    quick.add_argument("--output", type=Path, default=Path("runs/quickstart"), metavar="FOLDER")
    quick.add_argument("--seed", type=whole(0, MAX_SEED), default=0, metavar="INT")

    train = add("train", "run one training stage", TRAIN_HELP)
    train.add_argument("config", metavar="CONFIG", help="YAML file, see configs/")
    train.add_argument(
        "--dry-run", action="store_true",
        help="load everything, show the plan and the first row of data, and train nothing",
    )  # fmt: skip
    train.add_argument(
        "--world-size", type=whole(1), metavar="INT",
        help="with --dry-run: plan for this many GPUs, which need not be here, nor weights or data",
    )  # fmt: skip
    train.add_argument(
        "--gpu-type", choices=GPU_TYPES, default="h100",
        help="with --world-size: which GPUs to plan for (default: %(default)s)",
    )  # fmt: skip
    add_config_arguments(train)

    add_data_verbs(add)

    ask = add("generate", "ask a trained model for text and pictures", GENERATE_HELP)
    ask.add_argument("prompt", metavar="PROMPT", help="question or request; may hold <image>")
    ask.add_argument(
        "--model", type=Path, default=Path("runs/quickstart/model"), metavar="FOLDER",
        help="model folder (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="picture for the prompt, repeat for several",
    )  # fmt: skip
    ask.add_argument(
        "--save-to", type=Path, default=Path("."), metavar="FOLDER",
        help="where pictures of the answer go (default: here)",
    )  # fmt: skip
    ask.add_argument(
        "--max-new-tokens", type=whole(1), default=256, metavar="INT",
        help="longest answer, a picture's tokens included (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument(
        "--temperature", type=not_negative, default=0.0, metavar="FLOAT",
        help="of text; 0 always takes the likeliest token (default)",
    )  # fmt: skip
    ask.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, metavar="INT",
        help="of text and drawing noise (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument(
        "--guidance", type=not_negative, metavar="FLOAT",
        help="guidance scale (default: the decoder's)",
    )  # fmt: skip
    ask.add_argument(
        "--drawing-steps", type=whole(1), metavar="INT",
        help="denoising steps (default: the decoder's)",
    )  # fmt: skip
    ask.add_argument(
        "--precision", choices=PRECISIONS, default="fp32",
        help="arithmetic of the language model, as in training (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument(
        "--fp8-backend", choices=FP8_BACKENDS, default="torchao",
        help="who computes float8 products (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    export = add("export", "write a trained model for other programs", EXPORT_HELP)
    export.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    export.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    export.add_argument(
        "--format", choices=("hf", "official"), default="hf",
        help="names of projector and vision head: ours, or the official release's (default: hf)",
    )  # fmt: skip

    take = add("import", "make a model folder of official or exported weights", IMPORT_HELP)
    take.add_argument("weights", type=Path, metavar="WEIGHTS", help="folder to read")
    take.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to write")
    take.add_argument(
        "--vision", type=Path, required=True, metavar="FOLDER", help="Hugging Face SigLIP folder"
    )
    take.add_argument(
        "--grid", type=whole(1), default=8, metavar="INT",
        help="an image is grid x grid visual tokens (default: %(default)s)",
    )  # fmt: skip

    add("doctor", "show versions, devices and usable backends", "Shows what this machine can use.")
    return parser


def run_quickstart(arguments: argparse.Namespace) -> int:
    from metamorph.quickstart import missed_bars, quickstart, summary

    report = quickstart(arguments.output, arguments.seed)
    print(summary(report, arguments.output))
    missed = missed_bars(report)
    for line in missed:
        print(f"metamorph: the model did not learn enough: {line}", file=sys.stderr)
    return 1 if missed else 0


def run_train(arguments: argparse.Namespace, unknown: list[str]) -> None:
    config = load_config(arguments.config, overrides_from_namespace(arguments, unknown))
    if arguments.world_size is not None:
        if not arguments.dry_run:
            raise UserError("--world-size: it plans, so it needs --dry-run beside it")
        if config.stage == "decoder":
            from metamorph.decoder.plan import plan_decoder as plan
        else:
            from metamorph.training.world_plan import plan_world as plan
        from metamorph.training.hardware import GPUS

        print(plan(config, arguments.world_size, GPUS[arguments.gpu_type]))
        return
    if config.stage == "decoder":
        from metamorph.decoder.training import DecoderStage as Stage
        from metamorph.decoder.training import train_decoder as train
    else:
        from metamorph.training.trainer import LanguageStage as Stage
        from metamorph.training.trainer import train
    from metamorph.training.processes import is_first

    if arguments.dry_run:
        from metamorph.training.plan import dry_run

        print(dry_run(config, Stage))
    else:
        folder = train(config)
        if is_first():
            print(f"saved {folder}")


def run_generate(arguments: argparse.Namespace) -> None:
    import torch

    from metamorph.chat import Chat
    from metamorph.data.images import open_image
    from metamorph.generation.sampling import Sampling
    from metamorph.training.run_folder import resolve_device

    make_writable(arguments.save_to)  # not after minutes of work
    try:
        images = tuple(open_image(path, MAX_PIXELS) for path in arguments.image)
    except SampleError as error:
        raise UserError(f"--image: {error}") from error
    device = resolve_device(arguments.device)
    sampling = Sampling(
        temperature=arguments.temperature,
        generator=torch.Generator(device).manual_seed(arguments.seed),
    )
    chat = Chat.from_pretrained(
        arguments.model,
        device,
        precision=arguments.precision,
        fp8_backend=arguments.fp8_backend,
    )
    reply = chat.reply(
        [(arguments.prompt, images)], max_new_tokens=arguments.max_new_tokens, sampling=sampling
    )[0]
    can_draw = chat.decoder is not None
    pictures = []
    if can_draw:
        pictures = chat.draw(
            reply.features,
            seed=arguments.seed,
            guidance_scale=arguments.guidance,
            sampling_steps=arguments.drawing_steps,
        )
    unsaved = iter(pictures)
    for segment in reply.segments:
        if isinstance(segment, str):
            print(segment)
        elif can_draw:
            path = free_name(arguments.save_to)
            next(unsaved).save(path)
            print(f"[picture: {path}]")
    if reply.finish_reason == "length":
        print("metamorph: the answer was cut, see --max-new-tokens", file=sys.stderr)
    if reply.features and not can_draw:
        raise UserError(
            f"the pictures of the answer ({len(reply.features)}) could not be drawn: "
            f"{arguments.model} has no decoder/"
        )


def make_writable(folder: Path) -> None:
    """Makes the folder for pictures, if need be. ``UserError`` if files cannot be written to it."""
    if folder.is_file():
        raise UserError(f"--save-to: {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--save-to: cannot write to {folder}: {error.strerror}") from error


def free_name(folder: Path) -> Path:
    """The first ``picture-N.png`` that does not exist yet: nothing is overwritten."""
    number = 1
    while (path := folder / f"picture-{number}.png").exists():
        number += 1
    return path


def run_export(arguments: argparse.Namespace) -> None:
    from metamorph.model.official_names import export_model
    from metamorph.model.unified import MetaMorph
    from metamorph.model.weights import read_tokenizer

    model = MetaMorph.from_pretrained(arguments.model)
    tokenizer = read_tokenizer(arguments.model)
    check_new(arguments.output)
    export_model(model, arguments.output, tokenizer, arguments.format)
    print(f"saved {arguments.output}")


def run_import(arguments: argparse.Namespace) -> None:
    from metamorph.model.official_names import import_model

    check_new(arguments.output)
    model, tokenizer = import_model(arguments.weights, arguments.vision, grid=arguments.grid)
    model.save_pretrained(arguments.output, tokenizer)
    print(f"saved {arguments.output}")


def check_new(folder: Path) -> None:
    """Raises ``UserError`` if something is there: nothing is overwritten."""
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} exists, expected a new or an empty folder")


def run_doctor() -> None:
    from metamorph.doctor import main as doctor

    doctor()


def main(argv: list[str] | None = None) -> int:
    """Runs a verb. Returns 0, also after a training that was stopped and saved; 2 after one line on
    what a user can mend; 130 if interrupted; 1 after a quickstart whose model scored too low, or
    data of which too much is bad.
    """
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and arguments.verb != "train":
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        if arguments.verb == "quickstart":
            return run_quickstart(arguments)
        elif arguments.verb == "train":
            run_train(arguments, unknown)
        elif arguments.verb == "validate-data":
            return validate_data(arguments)
        elif arguments.verb == "encode":
            encode_data(arguments)
        elif arguments.verb == "generate":
            run_generate(arguments)
        elif arguments.verb == "export":
            run_export(arguments)
        elif arguments.verb == "import":
            run_import(arguments)
        else:
            run_doctor()
    except UserError as error:
        print(f"metamorph: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder of someone else
        where = "" if error.filename is None else f"{error.filename}: "
        message = where + (error.strerror or str(error))
        print(f"metamorph: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"metamorph: {error}", file=sys.stderr)
        return 0 if arguments.verb == "train" else INTERRUPTED  # a training can go on, all is well
    except KeyboardInterrupt:
        print("metamorph: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
