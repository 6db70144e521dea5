"""The command line: `dllm doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 if all is well, 1 if not, 2 for a command line that makes no sense.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dllm", description="Masked-diffusion language models, fast and exact.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what this machine offers, what dllm picks and whether it works",
        description="Versions, devices, the implementation picked for each operation and why, and a self-test of each.",
    )
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.set_defaults(run=_doctor)
    return parser


class _Version(argparse.Action):
    """--version, which loads the package only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import dllm

        print(f"dllm {dllm.__version__}")
        parser.exit()


def _doctor(options: argparse.Namespace) -> int:
    from dllm import doctor

    return doctor.main(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
