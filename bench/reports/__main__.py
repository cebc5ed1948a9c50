"""`python -m bench.reports [FOLDER]` prints the tables of a folder, `--write` makes a page of them.

The page, with plots, goes to docs/results, and its summary between two markers of a README.
"""

import argparse
from pathlib import Path

from bench.harness.results import read_records
from bench.reports.tables import text


def main(arguments: list[str] | None = None) -> None:
    """Print the tables of a folder, or write its page."""
    parser = argparse.ArgumentParser(prog="python -m bench.reports", description=__doc__)
    parser.add_argument(
        "results", type=Path, nargs="?", default=Path("bench/out"), metavar="FOLDER"
    )
    parser.add_argument("--write", type=Path, metavar="DOCS", help="docs/results")
    parser.add_argument("--readme", type=Path, help="put the summary between its markers as well")
    options = parser.parse_args(arguments)
    if options.readme and not options.write:
        parser.error("--readme needs --write: the summary links the page")
    try:
        records = read_records(options.results)
        if options.write is None:
            print(text(records))
        else:
            from bench.reports.page import write  # needs matplotlib, which a GPU machine may lack

            print(f"wrote {write(records, options.write, options.readme)}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
