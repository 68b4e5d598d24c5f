"""Benchmarks of dgcomp.video; each subcommand is a module of its own, `benchmarks/video_<command>.py`.

python -m benchmarks.video evaluate --data ../shared/data/video   # delay metrics: speed, published numbers, attacks
python -m benchmarks.video catdet --help                          # a cascade with a tracker, on real video
python -m benchmarks.video patchnet --help                        # boxes carried from key frame to key frame
"""

import argparse
import importlib
import sys

COMMANDS = ("evaluate", "catdet", "patchnet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name in COMMANDS:
        command = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter)
        if sys.argv[1:2] == [name]:
            module = importlib.import_module(f"benchmarks.video_{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
