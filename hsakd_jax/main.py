"""Trains what a config says.

    python -m hsakd_jax.main --config=configs/cifar100.py[:recipe] --workdir=DIR [--config.key=value ...]

recipes: hsakd (the default: teacher, then student, in one workdir), baseline, kd, teacher, student, mutual;
each has a form that ends in seconds, such as hsakd_tiny.

Running a command again continues it. Exit status: 0 done, 2 bad input, 143 or 130 stopped by SIGTERM or
Ctrl-C with the state saved.
"""

from absl import flags
from ml_collections import config_flags

from hsakd_jax.cli import command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a file of configs/, with ':recipe' behind it.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "where the run or the runs are kept.")


def main() -> None:
    """Trains."""
    from hsakd_jax import pipeline
    from hsakd_jax.progress import Console

    pipeline.execute(_CONFIG.value.to_dict(), _WORKDIR.value, Console())


if __name__ == "__main__":
    command(main, __doc__, "config", "workdir")
