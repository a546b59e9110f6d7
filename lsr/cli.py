"""The command line: ``lsr encode | index | search | mine | distill | train | evaluate | bench | …``.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 bad input (one sentence on
stderr), 2 wrong usage, 130 interrupted. The commands are in the ``cli_*.py`` beside this file.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import lsr
from lsr import cli_bench, cli_data, cli_eval, cli_search, cli_train
from lsr.errors import LsrError, LsrWarning
from lsr.files import check_file_target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    _use_one_line_warnings()
    try:
        for target in (getattr(options, "json", None), getattr(options, "save_run", None)):
            if target not in (None, "-"):
                check_file_target(target)
        options.command(options)
    except LsrError as error:
        print(f"lsr: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left
        return 0
    except OSError as error:
        print(f"lsr: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resumes = getattr(options, "resumes", None)
        hint = (
            ": what was finished is kept, the same command goes on from there" if resumes and resumes(options) else ""
        )
        print(f"lsr: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _use_one_line_warnings() -> None:
    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, LsrWarning):
            print(f"note: {message}", file=sys.stderr)
        else:
            plain(message, category, *rest)

    warnings.simplefilter("once", LsrWarning)
    warnings.showwarning = show  # type: ignore[assignment]


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="lsr", description="Learned sparse retrieval: from text to metrics.")
    parser.add_argument("--version", action="version", version=f"lsr {lsr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (cli_search, cli_data, cli_train, cli_eval, cli_bench):
        module.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
