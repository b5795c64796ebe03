"""The command `hsakd`: each subcommand is a module, `hsakd train` is `python -m hsakd_jax.main`.

hsakd SUBCOMMAND [...]
hsakd --version
"""

import ast
import os
import sys
from importlib import metadata
from pathlib import Path

from hsakd_jax.core.errors import unknown

COMMANDS = ("main", "evaluate", "results", "report", "summary", "predict", "export", "convert")
SUBCOMMANDS = {"train" if module == "main" else module: module for module in COMMANDS}


def main() -> None:
    """Becomes the command of the first word; without one, prints each command with its purpose."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in SUBCOMMANDS:
        # The same process as of the long form, whose start sets up the memory allocator.
        os.execv(sys.executable, [sys.executable, "-m", f"hsakd_jax.{SUBCOMMANDS[name]}", *words])
    if name == "--version":
        print(f"hsakd_jax {metadata.version('hsakd_jax')}")
    elif name in ("--help", "-h", "help"):
        print(_overview())
    else:
        print(f"error: {unknown('subcommand', name, SUBCOMMANDS)}", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    lines = []
    for name, module in SUBCOMMANDS.items():
        text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{module}.py").read_text())) or ""
        lines.append(f"hsakd {name:<10}{text.splitlines()[0]}")
    return "\n".join([*lines, "", "Each has --help. `python -m hsakd_jax.main` is `hsakd train`, and so on."])


if __name__ == "__main__":
    main()
