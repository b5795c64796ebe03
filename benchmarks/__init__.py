"""Speed benchmarks, and PyTorch networks to compare with."""

import argparse


class Parser(argparse.ArgumentParser):
    """Of a benchmark's options, its docstring as the help; a mistake ends it with one line and status 2."""

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


def file_name(text: str) -> str:
    """An --output, by which argparse refuses folders."""
    if "/" in text or not text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file in benchmarks/results/: leave out folders")
    return text
