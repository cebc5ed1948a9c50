"""`metamorph VERB ...`: finds the verb, and turns what went wrong into a line and an exit code.

A verb is a module with `NAME`, `SUMMARY`, `DESCRIPTION`, `add_arguments(parser)` and
`run(arguments)`, which returns an exit code or None for 0. Heavy imports wait in `run` until a verb
needs them, so that `--help` answers at once.
"""

import argparse
import sys

from metamorph import __version__
from metamorph.cli import (
    card,
    chat,
    completion,
    doctor,
    encode,
    evaluate,
    export,
    generate,
    import_weights,
    init,
    join,
    quickstart,
    serve,
    study,
    train,
    validate_data,
)
from metamorph.disk import NO_PLACE, no_place
from metamorph.errors import Halted, Stopped, UserError, one_line

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
VERBS = {
    verb.NAME: verb
    for verb in (
        quickstart, init, train, validate_data, encode, generate, chat, serve, evaluate, study,
        join, export, card, import_weights, doctor, completion,
    )
}  # fmt: skip
WITH_KEYS = (train.NAME, validate_data.NAME, encode.NAME)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metamorph",
        description="Teach a pretrained language model to see and to draw.",
    )
    parser.add_argument("--version", action="version", version=f"metamorph {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verb.add_arguments(
            verbs.add_parser(
                name,
                help=verb.SUMMARY,
                description=verb.DESCRIPTION,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a verb. Returns 0, also after a training that was stopped and saved; 2 after one line on
    what a user can mend; 130 if interrupted; 1 after a quickstart whose model scored too low, data
    of which too much is bad, a full disk, or the death of another process of the run.
    """
    parser = build_parser()
    given = sys.argv[1:] if argv is None else argv
    arguments, unknown = parser.parse_known_args(given)
    if unknown and arguments.verb not in WITH_KEYS:  # which name the nearest of their many keys
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.unknown_arguments, arguments.parser = unknown, parser
    arguments.command = [parser.prog, *given]
    try:
        return VERBS[arguments.verb].run(arguments) or 0
    except UserError as error:
        print(f"metamorph: {error}", file=sys.stderr)
        return 2
    except Halted as error:
        print(f"metamorph: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"metamorph: {error}", file=sys.stderr)
        # A training can go on: all is well.
        return 0 if arguments.verb == train.NAME else INTERRUPTED
    except KeyboardInterrupt:
        print("metamorph: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        system = no_place(error) or error
        if not isinstance(system, OSError):
            raise
        where = "" if system.filename is None else f"{system.filename}: "
        print(f"metamorph: {one_line(where + (system.strerror or str(system)))}", file=sys.stderr)
        return 1 if system.errno in NO_PLACE else 2  # the user's folder, or one of someone else
