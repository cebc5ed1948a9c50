"""metamorph serve: a trained model behind HTTP, with a page."""

import argparse
from pathlib import Path

from metamorph.cli.answer_arguments import (
    add_context_argument,
    add_drawing_arguments,
    add_model_arguments,
    drawing_settings_of,
    open_assistant,
)
from metamorph.cli.arguments import number, whole
from metamorph.errors import UserError
from metamorph.serving.limits import DEFAULT_LIMITS, Limits

NAME = "serve"
SUMMARY = "answer requests over HTTP, and show a page to talk to the model"
DESCRIPTION = """\
Serves a trained model in the shape of OpenAI's API: /v1/chat/completions, /v1/images/generations,
/v1/models; /healthz and /metrics for who watches it; and a page at /. Only this machine reaches it
unless --host says otherwise. Needs pip install 'metamorph-vpit[serve]'.

  metamorph serve --model runs/mine/model
  metamorph serve --host 0.0.0.0 --token-file token.txt --server-name pictures.example.org"""
INTERRUPTED = 130  # as shells have it
SLOTS = 16
PACKAGES = ("fastapi", "uvicorn", "prometheus-client")
LIMITS = (  # field of `Limits`, option, type, what it bounds
    ("queue", "--queue", whole(0), "requests that wait for a slot; more are refused (429)"),
    ("tokens", "--max-tokens", whole(1), "tokens of an answer, pictures included"),
    ("choices", "--max-choices", whole(1), "answers to one request (n)"),
    ("messages", "--max-messages", whole(1), "messages of a conversation"),
    ("characters", "--max-characters", whole(1), "characters of a conversation"),
    ("pictures", "--max-pictures", whole(0), "pictures of a conversation"),
    ("pixels", "--max-pixels", whole(1), "pixels of one picture"),
    ("body", "--max-body", whole(1), "bytes of a request"),
    ("bodies", "--max-bodies", whole(1), "bytes of all requests at hand"),
    ("seconds", "--timeout", number(above_zero=True), "seconds of a request, waiting included"),
    ("body_seconds", "--body-timeout", number(above_zero=True), "seconds until a body is there"),
    ("header_seconds", "--header-timeout", number(above_zero=True), "seconds until a head is"),
    ("idle_seconds", "--idle-timeout", number(above_zero=True), "seconds between two requests"),
    ("stall_seconds", "--stall-timeout", number(above_zero=True), "seconds a reader takes nothing"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--preview-decoder", type=Path, metavar="FOLDER",
        help="folder of a decoder that draws in one pass: it shows at once what the diffusion "
        "decoder is going to draw",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8000, metavar="INT",
        help="0 takes a free one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="holds the token that requests must bring (default: METAMORPH_TOKEN, if it is set)",
    )  # fmt: skip
    parser.add_argument(
        "--no-token", action="store_true", help="let everybody in who reaches another --host"
    )
    parser.add_argument(
        "--server-name", action="append", default=[], metavar="NAME",
        help="a name by which clients call the server, repeat for several (default: those of this "
        "machine where it listens on itself alone, else any)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="fetch pictures from this host over https, repeat for several (default: from none)",
    )  # fmt: skip
    parser.add_argument(
        "--name", default="metamorph", help="of the model in /v1/models (default: %(default)s)"
    )
    parser.add_argument(
        "--image-prompt", default="Generate an image of {prompt}.", metavar="TEXT",
        help="how /v1/images/generations asks the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=number(), default=30.0, metavar="FLOAT",
        help="seconds that requests have to finish when the server stops (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=whole(1, 1024), default=SLOTS, metavar="INT",
        help="answers that are made at once (default: %(default)s)",
    )  # fmt: skip
    add_context_argument(parser)
    drawing = parser.add_argument_group("drawing", "where a request says nothing")
    add_drawing_arguments(drawing, "the decoder's")
    limits = parser.add_argument_group("limits")
    for field, option, kind, meaning in LIMITS:
        limits.add_argument(
            option, type=kind, dest=field, default=getattr(DEFAULT_LIMITS, field),
            metavar="NUMBER", help=f"{meaning} (default: %(default)s)",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    check_packages()

    from metamorph.serving.access import door_of
    from metamorph.serving.app import create_app
    from metamorph.serving.fetching import Fetcher
    from metamorph.serving.served import check_image_prompt, served_by
    from metamorph.serving.server import Server, bound, log_to_stderr

    limits = Limits(**{field: getattr(arguments, field) for field, *_ in LIMITS})
    door = door_of(
        arguments.host,
        token_file=arguments.token_file,
        without_token=arguments.no_token,
        names=arguments.server_name,
    )
    check_image_prompt(arguments.image_prompt)
    drawing = drawing_settings_of(arguments)
    fetcher = Fetcher(arguments.allow_host)
    listener = bound(arguments.host, arguments.port)  # before minutes of loading
    assistant = open_assistant(
        arguments, arguments.slots, preview_decoder=arguments.preview_decoder
    )
    served = served_by(assistant, arguments.name, arguments.image_prompt, drawing)
    app = create_app(
        assistant, served, decoder=assistant.decoder, limits=limits, door=door, fetcher=fetcher
    )
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    log_to_stderr()
    server = Server(
        app, grace=arguments.grace, ready=lambda: print(f"serving on {url}", flush=True)
    )
    server.run([listener])
    return INTERRUPTED if server.force_exit else 0


def check_packages() -> None:
    """Raises `UserError` where the optional packages of the server are not installed."""
    from metamorph.libraries import PROBES

    for name in PACKAGES:
        reason = PROBES[name]("cpu")
        if reason is not None:
            raise UserError(
                f"metamorph serve needs {name}, which cannot be used here ({reason}); "
                f"install it by pip install 'metamorph-vpit[serve]'"
            )
