"""Names the commands, for those who type `python -m hsakd_jax`."""

import ast
from pathlib import Path

COMMANDS = ("main", "evaluate", "results", "report", "summary", "predict", "export", "convert")


def main() -> None:
    """Prints each command with what it does."""
    for name in COMMANDS:
        text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text())) or ""
        print(f"python -m hsakd_jax.{name:<10}{text.splitlines()[0]}")
    print("\nEach has --help.")


if __name__ == "__main__":
    main()
