"""Runs the `hostagent` command and turns whatever ends it into an exit status and words for the user."""

from __future__ import annotations

import signal
import sys
from typing import Final

import click

from hostagent.cli import cli
from hostagent.errors import EndedBySignalError, UserError
from hostagent.terminal_output import OutputClosedError, drop_output, open_streams, print_error

DONE: Final = 0
USAGE: Final = 2
BUG: Final = 70
"""EX_SOFTWARE of sysexits.h."""
INTERRUPTED: Final = 130
"""As a shell shows SIGINT."""
OUTPUT_CLOSED: Final = 141
"""As a shell shows SIGPIPE: the reader of our output had enough."""

_REPORT: Final = """\
This is a fault of hostagent, not yours. Please report it with the lines above, the output of `hostagent doctor`
and, if an instance is involved, that of `hostagent logs`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    if sys.stdout is sys.__stdout__:  # a test's stays as it is
        open_streams()
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(arguments, prog_name="hostagent", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as exc:
        drop_output()
        return _status(_innermost(exc))
    return result if isinstance(result, int) else DONE


def _status(exc: BaseException) -> int:
    match exc:
        case UserError():
            from hostagent.cli_views import plain  # what is shown may come from the guest

            # Mistakes of a file begin with their place, where editors look for it.
            prefix = "" if getattr(exc, "mistakes", ()) else "error: "
            print_error(prefix + "\n".join(map(plain, exc.message.splitlines())))
            print_error(f"hint: {plain(exc.hint)}")
            return exc.status
        case click.exceptions.Exit():
            return exc.exit_code
        case click.ClickException():
            exc.show()
            return USAGE
        case KeyboardInterrupt() | click.Abort() | EndedBySignalError(number=signal.SIGINT):
            print_error("interrupted")
            return INTERRUPTED
        case EndedBySignalError():
            print_error(str(exc))
            return 128 + exc.number
        case OutputClosedError():
            return OUTPUT_CLOSED
        case SystemExit():
            raise exc  # of click's completion
    import traceback  # its source reader is a tenth of a start

    traceback.print_exception(exc)
    print_error(_REPORT)
    return BUG


def _innermost(exc: BaseException) -> BaseException:
    """What one task of a nursery raised; a group of several stays one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


if __name__ == "__main__":
    sys.exit(main())
