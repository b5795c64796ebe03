"""Trains what a config says.

    python -m hsakd_jax.main --config=configs/cifar100.py[:recipe[/TEACHER/STUDENT]] --workdir=DIR
        [--config.key=value ...] [--coordinator=HOST:PORT --processes=N --process=I]

recipes: hsakd (teacher, student alone and student in one workdir; the default of most files), baseline, kd, teacher,
student, mutual, crd and the other rows that the config file lists; each has a form that ends in seconds, such as
hsakd_tiny. TEACHER and STUDENT are networks. What a recipe needs, such as its teacher, is trained first, in the same
workdir.

Several processes: the same command in each. On TPU pods, under Slurm and OpenMPI they find one another; elsewhere the
three flags say where the first one listens (HOST:PORT), how many there are, and which one this is, from 0.

Running a command again continues it. Exit status: 0 done, 2 bad input, 143 or 130 stopped by SIGTERM or
Ctrl-C with the state saved.
"""

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("config", None, "a file of configs/, with ':recipe' behind it.", values)
    flags.DEFINE_string("workdir", "", "where the run or the runs are kept.", values)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process.", values)
    flags.DEFINE_integer("processes", 0, "how many processes there are.", flag_values=values)
    flags.DEFINE_integer("process", -1, "which one this is, from 0.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Trains."""
    from hsakd_jax.core.console import Console
    from hsakd_jax.core.sharding import connect, is_first_process, together
    from hsakd_jax.experiments import pipeline

    connect(values.coordinator, values.processes, values.process)
    with together():
        pipeline.execute(values.config.to_dict(), values.workdir, Console(silent=not is_first_process()))


COMMAND = Command(main, __doc__, define_flags, required=("config", "workdir"))

if __name__ == "__main__":
    start(COMMAND)
