"""The command line, ``gatelens COMMAND``: a module here for each group of commands.

``studies`` runs experiments, ``runs`` reads what they left, ``models`` says what is there, ``plan`` what it needs,
``bench`` scores methods; ``options`` are what commands share, ``stopping`` is what a signal does. Heavy imports wait
until a command runs, so that ``--help`` answers at once. An error the user can fix is one line on stderr and exit
code 2.
"""

from __future__ import annotations

import sys

from gatelens.cli.stopping import listening

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    with listening() as stop:
        try:
            return _run(arguments)
        except BaseException as error:
            failure = error
    if stop.number is None:
        return _said(failure)
    # whatever came of the signal: within an import it comes out as an ImportError
    print("; ".join(["gatelens: stopped", *getattr(failure, "__notes__", [])]), file=sys.stderr)
    return stop.exit_code


def _run(arguments: list[str] | None) -> int:
    from gatelens.cli import bench, explore, models, plan, runs, studies, verify  # noqa: F401
    from gatelens.cli.options import app

    return int(app(args=arguments, standalone_mode=False) or 0)


def _said(failure: BaseException) -> int:
    """Print an error a user can fix, in one line; the exit code. Anything else is raised again."""
    from gatelens.errors import GatelensError

    if isinstance(failure, GatelensError):
        line, code = " ".join(str(failure).split()), 2
    elif hasattr(failure, "exit_code") and hasattr(failure, "format_message"):  # of the command as typed
        line, code = failure.format_message(), int(failure.exit_code)
    else:
        raise failure
    print(f"gatelens: error: {line}", file=sys.stderr)
    return code
