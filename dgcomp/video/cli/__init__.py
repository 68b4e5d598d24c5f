"""The commands of `python -m dgcomp.video`, one module each: `add_arguments(parser)` and `run(options)`."""
