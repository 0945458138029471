"""The command `acclimate`, also as `python -m acclimate`."""

import sys

from acclimate.processes import Stopped, end_on_signals, stop_on_signals


def main() -> None:
    """Do what the command line asks for, and end the process with an exit code."""
    stop_on_signals()  # before anything that takes long is imported
    try:
        from acclimate.cli.app import app

        app(prog_name="acclimate")
    except Stopped as stopped:  # before or after the work of a command, which tells of it by itself
        print(f"Error: {stopped}.", file=sys.stderr)  # noqa: T201 (there is no screen yet)
        sys.exit(stopped.exit_code)
    finally:
        end_on_signals()


if __name__ == "__main__":
    main()
