"""The command line: ``gatelens study | find-gate | sections | report | compare | tokens | models``.

``studies`` runs experiments, ``runs`` reads what they left, ``models`` says what is there; ``options`` are what
commands share. Heavy imports wait until a command runs, so that ``--help`` answers at once. An error the user can fix
is one line on stderr and exit code 2.
"""

from __future__ import annotations

import sys

import typer

from gatelens.cli import models, runs, studies  # noqa: F401  (each adds its commands)
from gatelens.cli.models import organism_names
from gatelens.cli.options import app

__all__ = ["app", "main", "organism_names"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    from gatelens.errors import GatelensError

    try:
        code = app(args=arguments, standalone_mode=False)
    except GatelensError as error:
        line = " ".join(str(error).split())
        print(f"gatelens: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gatelens: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    except typer.Abort:
        return 130
    except Exception as error:  # usage errors carry their own exit code and message
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            print(f"gatelens: error: {error.format_message()}", file=sys.stderr)
            return int(error.exit_code)
        raise
    return int(code or 0)
