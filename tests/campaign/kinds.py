"""The kinds of attack: one trial of each, by its own random numbers, and what it found."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign import children, runs, strangers
from tests.campaign.children import HUNG, Operations, Result

MEMORY = 6 * 2**30  # bytes that a command on a stranger's files may use beyond those of the campaign itself
# Keys of config.json that may change without a word, since no number depends on them (see `runs.compare`).
FREE = ("command", "data.dir", "training.remat", "logging.tracking")
# Values of no meaning, each of which every key gets.
STRANGE = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, -0.5, 0.5, 1e300, 1e-300, "", "x", "../..", "\x1b[31m", [], [0],
    [-1], ["x"], {}, {"x": 1}, "a" * 5000, [1] * 5000,
)  # fmt: skip
TYPED = (
    "", "x", "-1", "0", "0.5", "1e300", "nan", "inf", "-inf", "9" * 30, str(2**31), "()", "(0,)", "(-1,)", "('x',)",
    "None", "True", "\x1b[31m", "a" * 5000,
)  # fmt: skip


class Fault(Exception):
    """The software broke a promise; the text says how."""


@dataclass(frozen=True)
class Scene:
    """What the trials start from.

    Attributes:
      folder: a folder of the campaign.
      whole: a finished run.
      half: the same run, stopped before its end.
      digest: of the finished run.
      numbers: the accuracies that `evaluate --json` prints of it.
      operations: operations on files of the whole training.
      seconds: that the training takes.
    """

    folder: Path
    whole: Path
    half: Path
    digest: str
    numbers: dict[str, Any]
    operations: int
    seconds: float


def prepare(folder: Path) -> Scene:
    """Trains the runs that are attacked.

    Raises:
      RuntimeError: the training fails.
    """
    whole, half = folder / "whole", folder / "half"
    _succeed(runs.train(whole))  # fills the cache of compiled programs
    shutil.rmtree(whole)
    start = time.monotonic()
    counted = children.run(lambda: _counted(whole))
    _succeed(counted)
    seconds = time.monotonic() - start
    children.run(lambda: _stopped(half, at_record=7))
    numbers = runs.command("evaluate", f"--workdir={whole}", "--json")
    _succeed(numbers)
    operations = int(counted.out.rsplit("operations:", 1)[1])
    return Scene(folder, whole, half, runs.digest(whole), json.loads(numbers.out), operations, seconds)


def _succeed(result: Result) -> None:
    if result.status:
        raise RuntimeError(f"status {result.status}\n{result.out}\n{result.err}")


def _counted(workdir: Path) -> int:
    operations = Operations(workdir)
    status = runs.call("main", *runs.ARGS, f"--workdir={workdir}")
    print(f"operations:{operations.count}")
    return status


def _stopped(workdir: Path, at_record: int) -> int:
    """Trains, with a SIGTERM when so many records are written."""

    def watch():
        metrics = workdir / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < at_record:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return runs.call("main", *runs.ARGS, f"--workdir={workdir}")


def kill(scene: Scene, draw: random.Random, folder: Path) -> str:
    """A training killed up to three times, at an operation on its files or at any moment, ends as without."""
    workdir = folder / "run"
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.7:
            at = draw.randint(1, scene.operations)
            done = children.run(lambda at=at: _killed_at(workdir, at))
        else:
            done = children.run(lambda: _killed_after(workdir, draw.uniform(0, scene.seconds)))
        if done.status not in (0, -signal.SIGKILL):
            raise Fault(f"after a kill: {_shown(done)}")
    return _goes_on(scene, workdir)


def _killed_at(workdir: Path, at: int) -> int:
    Operations(workdir, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return runs.call("main", *runs.ARGS, f"--workdir={workdir}")


def _killed_after(workdir: Path, seconds: float) -> int:
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
    return runs.call("main", *runs.ARGS, f"--workdir={workdir}")


def _goes_on(scene: Scene, workdir: Path) -> str:
    """The same command ends the run as if nothing had happened."""
    done = runs.train(workdir)
    if done.status or done.has_traceback:
        raise Fault(f"the same command fails: {_shown(done)}")
    if runs.digest(workdir) != scene.digest:
        raise Fault("the run ends with other numbers")
    return "the same to the bit"


def disk_error(scene: Scene, draw: random.Random, folder: Path) -> str:
    """An error of the disk ends a training with one line, and the same command goes on."""
    workdir = folder / "run"
    number = draw.choice([errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT])
    if draw.random() < 0.6:
        at, lasting = draw.randint(1, scene.operations), draw.random() < 0.5
        done = children.run(lambda: _failing(workdir, at, number, lasting))
    else:
        limit = int(2 ** draw.uniform(4, 17))
        done = children.run(lambda: _limited(workdir, limit))
    if done.has_traceback or (done.status and not done.is_refusal):
        raise Fault(_shown(done))
    return ("refused, then " if done.status else "survived, then ") + _goes_on(scene, workdir)


def _failing(workdir: Path, at: int, number: int, lasting: bool) -> int:
    def fail():
        raise OSError(number, os.strerror(number), str(workdir))

    Operations(workdir, at, fail, lasting)
    return runs.call("main", *runs.ARGS, f"--workdir={workdir}")


def _limited(workdir: Path, limit: int) -> int:
    """No file may grow beyond the limit, whoever writes it: as a full disk, for Python and C++."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    workdir.mkdir(parents=True)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # it would be limited too
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return runs.call("main", *runs.ARGS, f"--workdir={workdir}")


def damage(scene: Scene, draw: random.Random, folder: Path) -> str:
    """One changed byte of a run is noticed, or changes nothing."""
    resume = draw.random() < 0.5
    workdir = folder / "run"
    shutil.copytree(scene.half if resume else scene.whole, workdir)
    file = draw.choice(sorted(path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    what = f"{file.relative_to(workdir)}, byte {at}"
    if resume:
        done = runs.train(workdir)
        if done.is_refusal and not done.has_traceback:
            return "refused"
        if done.status or done.has_traceback:
            raise Fault(f"{what}: {_shown(done)}")
        said = any(word in done.out + done.err for word in ("warning", "damaged"))
        if runs.digest(workdir) == scene.digest:
            return "said, and the same to the bit" if said else "the same to the bit"
        if said:
            return "said"
        raise Fault(f"{what}: other numbers without a word: {_shown(done)}")
    return _judge_evaluation(scene, runs.command("evaluate", f"--workdir={workdir}", "--json"), what)


def _judge_evaluation(scene: Scene, done: Result, what: str) -> str:
    if "not enough memory" in done.err:
        raise Fault(f"{what}: takes all memory")
    if done.is_refusal and not done.has_traceback:
        return "refused"
    if done.status or done.has_traceback:
        raise Fault(f"{what}: {_shown(done)}")
    if json.loads(done.out) != scene.numbers:
        raise Fault(f"{what}: {done.out.strip()} instead of {scene.numbers}, and only {done.err!r} is said")
    return "the same numbers"


def config_file(scene: Scene, draw: random.Random, folder: Path) -> str:
    """A changed config.json is refused, or changes nothing."""
    workdir = folder / "run"
    shutil.copytree(scene.whole, workdir)
    path = workdir / "config.json"
    tree = json.loads(path.read_text())
    section, key, name = draw.choice(_keys(tree, ""))
    before = json.dumps(tree)
    kind = draw.choice(("delete", "add", "value", "value", "value", "nudge"))
    if kind == "delete":
        del section[key]
    elif kind == "add" and isinstance(section, dict):
        section[f"{key}_"] = section[key]
    elif kind == "nudge" and isinstance(section[key], int | float) and not isinstance(section[key], bool):
        section[key] = section[key] * 2 if draw.random() < 0.5 else section[key] + 1
    else:
        section[key] = draw.choice(STRANGE)
    path.write_text(json.dumps(tree))
    done = runs.command("evaluate", f"--workdir={workdir}", "--json", memory=MEMORY)
    what = f"{name} ({kind} -> {str(section.get(key) if isinstance(section, dict) else section)[:80]})"
    verdict = _judge_evaluation(scene, done, what)
    if verdict != "refused" and json.dumps(tree) != before and not name.startswith(FREE):
        raise Fault(f"{what} is not noticed: {done.err!r}")
    return verdict


def _keys(tree: Any, prefix: str) -> list[tuple[Any, Any, str]]:
    """Every place in a tree of JSON: its container, its key and its path."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found.append((tree, key, f"{prefix}{key}"))
        if isinstance(value, dict | list):
            found += _keys(value, f"{prefix}{key}.")
    return found


UNUSED = ("teacher.", "frozen.", "objective.")


def command_line(scene: Scene, draw: random.Random, folder: Path) -> str:
    """A key of the config set to anything is refused, or is the value of the run."""
    from hsakd_jax.experiments import config_file as reader

    config = reader.load("configs/cifar100.py:baseline_tiny").to_dict()
    places = [(section, key, name) for section, key, name in _keys(config, "") if not isinstance(section[key], dict)]
    # Keys of other recipes' sections are refused whatever their value is.
    used = [name for section, _, name in places if not isinstance(section, tuple) and not name.startswith(UNUSED)]
    used += [name for _, _, name in places if name.startswith("objective.baseline.")]
    name = draw.choice(used)
    value = draw.choice(TYPED)
    line = (*runs.ARGS, "--config.student.epochs=1", f"--config.{name}={value}", f"--workdir={folder}/run")
    done = runs.command("main", *line, timeout=300)
    what = f"--config.{name}={value[:40]}"
    if done.is_refusal and not done.has_traceback:
        if "is not finite" in done.err:  # a rate or decay of 1e30 is a number, and its run ends at once
            return "diverged"
        if (folder / "run").exists():
            raise Fault(f"{what}: refused, but {folder}/run was made")
        return "refused"
    if done.status or done.has_traceback:
        raise Fault(f"{what}: {_shown(done)}")
    return "trained"


def stranger(scene: Scene, draw: random.Random, folder: Path) -> str:
    """A stranger's run directory, checkpoint or images execute nothing, and cost no more than their size suggests."""
    canary = folder / "canary"
    attack = draw.choice(strangers.ATTACKS)
    line = attack(scene.whole, draw, folder, canary)
    done = runs.command(*line, timeout=120, memory=MEMORY)
    if "not enough memory" in done.err:
        raise Fault(f"{attack.__name__}: takes all memory")
    if canary.exists():
        raise Fault(f"{attack.__name__}: code of the stranger was executed")
    if done.status == HUNG:
        raise Fault(f"{attack.__name__}: hangs")
    if done.has_traceback or (done.status and not done.is_refusal):
        raise Fault(f"{attack.__name__}: {_shown(done)}")
    if "\x1b" in done.out + done.err:
        raise Fault(f"{attack.__name__}: control characters reach the terminal")
    return f"{attack.__name__}: {'refused' if done.status else 'harmless'}"


def _shown(done: Result) -> str:
    return f"status {done.status}, {done.err[-1500:].strip() or done.out[-500:].strip()}"


KINDS: dict[str, Callable[[Scene, random.Random, Path], str]] = {
    "kill": kill,
    "disk-error": disk_error,
    "damage": damage,
    "config-file": config_file,
    "command-line": command_line,
    "stranger": stranger,
}
