"""`python -m dgcomp.video`: how late a detector sees its objects, and detectors that see them early for less."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "evaluate": "detection delay (AD, mD) and precision of detections, as tables, JSON, Markdown and plots",
    "catdet": "a cheap and an expensive detector joined by a tracker, on a video",
    "patchnet": "boxes carried from key frame to key frame, on a video",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with a sentence on standard error and status 2 where the input is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"dgcomp.video: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all commands; only the chosen one's module is imported, for the sake of what it depends on."""
    parser = argparse.ArgumentParser(prog="python -m dgcomp.video", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, sentence in COMMANDS.items():
        command = commands.add_parser(name, help=sentence, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            module = importlib.import_module(f"dgcomp.video.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    main()
