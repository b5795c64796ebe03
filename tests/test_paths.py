"""Every path that a user types, to every command: one line that names it, whatever is wrong with it."""

import errno
import os

import numpy as np
import pytest
from PIL import Image
from run_configs import run_config

from hsakd_jax.models import create
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import initialise

DIGITS = "--config=configs/cifar100.py:student_tiny"
TREE = ("--config=configs/imagenet.py:baseline", "--config.data.name=image_tree")
# PATH is the word that is wrong, RUN a run, IMAGE an image, NEW a file or folder that can be made.
COMMANDS = {
    "main --workdir": ("main", DIGITS, "--workdir=PATH"),
    "main --config": ("main", "--config=PATH", "--workdir=NEW"),
    "main data.dir": ("main", *TREE, "--workdir=NEW", "--config.data.dir=PATH"),
    "main teacher.workdir": ("main", DIGITS, "--workdir=NEW", "--config.teacher.workdir=PATH"),
    "main student.init": ("main", DIGITS, "--workdir=NEW", "--config.student.init=PATH"),
    "evaluate --workdir": ("evaluate", "--workdir=PATH"),
    "evaluate --data_dir": ("evaluate", "--workdir=RUN", "--data_dir=PATH"),
    "predict --workdir": ("predict", "--workdir=PATH", "IMAGE"),
    "predict IMAGE": ("predict", "--workdir=RUN", "PATH"),
    "export --workdir": ("export", "--workdir=PATH", "--format=safetensors", "--output=NEW"),
    "export --output": ("export", "--workdir=RUN", "--format=safetensors", "--output=PATH/x"),
    "convert CHECKPOINT": ("convert", "PATH", "--output=NEW"),
    "results RUNS": ("results", "PATH"),
    "report RUN": ("report", "PATH", "--output=NEW.html"),
    "report --output": ("report", "RUN", "--output=PATH/x.html"),
    "summary": ("summary", "PATH/"),
}
# Kinds of bad paths, with a part that the line names.
BAD = {
    "a long name": "xxxxx",
    "a link to itself": "loop",
    "an unknown user": "nobody_has_this_name",
    "a null character": "a\\x00b",
    "a closed folder": "closed",
    "an address": "gs",
    "nothing": "none",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a network that was not trained."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = run_config(classes=[str(i) for i in range(10)], student__arch="resnet8_quarter")
    directory = RunDirectory(path)
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, initialise(create("resnet8_quarter", 10, branches=False), (8, 8, 1), 0), 0.5)
    checkpoints.close()
    return path


@pytest.fixture
def make(run, tmp_path, monkeypatch):
    """The words of a command with a bad path, by the kind of the path."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")

    def bad(kind):
        loop = tmp_path / "loop"
        if kind == "a link to itself":
            loop.symlink_to(loop)
        if kind == "a closed folder":
            _close(tmp_path / "closed", monkeypatch)
        return {
            "a long name": tmp_path / ("x" * 300),
            "a link to itself": loop,
            "an unknown user": "~nobody_has_this_name/x",
            "a null character": f"{tmp_path}/a\0b",
            "a closed folder": tmp_path / "closed" / "x",
            "an address": "gs://bucket/x",
            "nothing": tmp_path / "none" / "x",
        }[kind]

    def words(template, kind):
        placed = {"PATH": bad(kind), "RUN": run, "NEW": tmp_path / "new", "IMAGE": tmp_path / "image.png"}
        for word in template:
            for name, path in placed.items():
                word = word.replace(name, str(path))
            yield word

    return words


def _close(folder, monkeypatch):
    """A folder that the user may not enter; stands in for its permissions, which do not hold for root."""
    folder.mkdir()

    def closed(function):
        def called(path, *args, **options):
            if isinstance(path, str | os.PathLike) and str(path).startswith(f"{folder}/"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **options)

        return called

    for name in ("stat", "lstat", "open", "mkdir", "scandir", "listdir", "access"):
        monkeypatch.setattr(os, name, closed(getattr(os, name)))
    monkeypatch.setattr("io.open", closed(open))
    monkeypatch.setattr("builtins.open", closed(open))


# A run makes its folder.
CASES = [(command, kind) for command in COMMANDS for kind in BAD if (command, kind) != ("main --workdir", "nothing")]


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_a_bad_path_is_one_line(command, kind, make, call_command, tmp_path):
    name, *words = make(COMMANDS[command], kind)
    done = call_command(name, *words)
    *notes, line = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert BAD[kind] in done.stderr
    assert all(note.startswith(("Preparing", "skipped")) for note in notes)
    assert not (tmp_path / "new").exists()
