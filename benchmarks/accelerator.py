"""One visit to a GPU that is lent for minutes: golden figures and step times first, then HSAKD at full length.

    python -m benchmarks.accelerator --minutes 9 --output DIR [--parts golden step]
    python -m benchmarks.accelerator --minutes 9 --output DIR --parts rows --data DIR --teacher FILE [--earlier DIR]

golden  benchmarks.golden: the reference's figures on this device, in three precisions
step    benchmarks.step: two pairs in bfloat16, against PyTorch with channels_last, autocast and compile
rows    CIFAR-100, ResNet-56 -> ResNet-20: branches on the published ResNet-56, then HSAKD's student. A run that is not
        done when the minutes end saves its state, and the next visit resumes it. Its log has the rate of the whole
        loop. Runs evaluate every tenth epoch, so their best epoch is one of those.

Each part has a share of the minutes and is stopped at its end. --data is the folder that contains cifar100/3.0.2, and
--teacher the file of the published ResNet-56. --output gets summary.json, log.txt, and an archive of tables and runs in
files of at most 15 MiB (visit.tar.00, ...), also if this command gets SIGTERM. --earlier is the --output of an earlier
visit. A run stores the path of its data, so all visits use the same working folder, /tmp/hsakd_accelerator.

--device cpu --quick is a rehearsal: few images, one epoch a row. `benchmarks/carry.sh` packs what a machine without
network needs. Exit status: 0, or 1 if a part failed; the end of its minutes is no failure.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import Parser
from hsakd_jax.runs import manifest
from hsakd_jax.runs.metrics_log import MetricsLog

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("/tmp/hsakd_accelerator")
# Of the minutes, the greatest share of each part.
SHARES = {"golden": 0.35, "step": 0.6, "rows": 1.0}
PAIRS = ("resnet56:resnet20", "wrn_40_2:wrn_16_2")
SAVE_S = 40  # seconds that a run needs to save its state, and this process to pack it
PART_BYTES = 15 * 2**20
QUICK_ROW = ["--config.data.fraction=0.01", "--config.eval_every=1", "--config.log_every=1"]


class Visit:
    """Runs commands until the minutes end, and keeps their log.

    Args:
      minutes: until the end of the visit.
      output: folder of the log.
      device: 'gpu' or 'cpu'.
    """

    def __init__(self, minutes: float, output: Path, device: str):
        self.began = time.monotonic()
        self.seconds = 60 * minutes
        self.log = (output / "log.txt").open("w")
        self.parts: list[dict] = []
        self.env = {
            # Two processes of a benchmark share the device.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": str(WORK / "cache"),
            # Without it, JAX computes on the CPU if CUDA does not start.
            "JAX_PLATFORMS": {"gpu": "cuda"}.get(device, device),
            **os.environ,
            "PYTHONUNBUFFERED": "1",
        }

    def left(self) -> float:
        """Seconds until a run has to save its state."""
        return self.seconds - SAVE_S - (time.monotonic() - self.began)

    def run(self, name: str, words: Sequence[str], limit: float, grace: float = 10) -> bool:
        """Runs `python -m WORDS` for at most `limit` seconds; returns whether it ended by itself with status 0."""
        limit, began, ended = min(limit, self.left()), time.monotonic(), "stopped"
        print(f"{name}: up to {max(limit, 0):.0f} s: {' '.join(words)}", flush=True)
        if limit < 5:
            self.parts.append({"part": name, "seconds": 0, "ended": "no time was left"})
            return False
        line = [sys.executable, "-m", *words]
        process = subprocess.Popen(
            line, cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True, env=self.env
        )
        try:
            ended = f"status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            pass
        finally:
            # A run saves its state, and a benchmark ends its processes.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.parts.append({"part": name, "seconds": round(time.monotonic() - began, 1), "ended": ended})
        print(f"{name}: {ended} after {self.parts[-1]['seconds']} s", flush=True)
        return ended == "status 0"


def benchmark_words(part: str, quick: bool, device: str) -> list[str]:
    """The command of a part, whose tables get the name `accelerator-PART`."""
    words = [f"benchmarks.{part}", "--output", f"accelerator-{part}"]
    if part == "golden":
        return [*words, "--pair", PAIRS[1 if quick else 0]]
    pairs = [word for pair in (PAIRS[:1] if quick else PAIRS) for word in ("--pair", pair)]
    size = ["--batch", "4", "--rounds", "1"] if quick else ["--dtype", "bfloat16", "--steps", "50", "--rounds", "5"]
    against = "channels_last" if device == "cpu" else "channels_last+compile+bfloat16"
    return [*words, *pairs, *size, "--device", device, "--processes", "1", "--against", against]


def run_benchmark(visit: Visit, part: str, args: argparse.Namespace) -> None:
    """Runs a part and collects its tables, also those of a part that was stopped."""
    try:
        visit.run(part, benchmark_words(part, args.quick, args.device), SHARES[part] * visit.seconds)
    finally:
        (WORK / "tables").mkdir(exist_ok=True)
        for file in (ROOT / "benchmarks" / "results").glob(f"accelerator-{part}.*"):
            shutil.move(file, WORK / "tables" / file.name)


def rows(quick: bool) -> dict[str, list[str]]:
    """The words of each row, in order."""
    runs, data = WORK / "runs", WORK / "data"

    def row(name: str, recipe: str, *flags: str) -> list[str]:
        words = ["hsakd_jax.main", f"--config=configs/cifar100.py:{recipe}", f"--workdir={runs / name}"]
        return [*words, f"--config.data.dir={data}", *(QUICK_ROW if quick else ["--config.eval_every=10"]), *flags]

    def short(section: str) -> list[str]:
        return [f"--config.{section}.epochs=1", f"--config.{section}.milestones=()"] if quick else []

    return {
        "teacher_frozen": row(
            "teacher_frozen", "teacher_frozen/resnet56", f"--config.frozen.init={runs / 'resnet56'}", *short("frozen")
        ),
        "student_frozen": row(
            "student_frozen",
            "student_frozen/resnet56/resnet20",
            f"--config.teacher.workdir={runs / 'teacher_frozen'}",
            *short("student"),
        ),
    }


def run_rows(visit: Visit, args: argparse.Namespace) -> None:
    """Trains the rows, one after the other, until the end of the visit."""
    runs = WORK / "runs"
    if not manifest.steps(runs / "resnet56" / "checkpoints"):
        words = ["hsakd_jax.convert", str(args.teacher.resolve()), "--data=cifar100", f"--output={runs / 'resnet56'}"]
        if not visit.run("convert", words, 120):
            return
    for name, words in rows(args.quick).items():
        if not (runs / name / "results.json").exists() and not visit.run(name, words, visit.left(), SAVE_S):
            return


def progress(run: Path) -> dict:
    """The last logged step, epoch and rate of a run, and its accuracies if it is done."""
    records = MetricsLog(run / "metrics.jsonl", write=False).read()
    logged = next((record for record in reversed(records) if "images_per_s" in record.values), None)
    found = {
        "run": run.name,
        "step": logged and logged.step,
        "epoch": logged and logged.epoch,
        "images_per_s": logged and logged.values["images_per_s"],
    }
    results = run / "results.json"
    return found | ({"last": json.loads(results.read_text())["last"]} if results.exists() else {})


def pack(output: Path) -> list[str]:
    """Writes tables and runs into the output in files of at most 15 MiB: the newest and the best checkpoint of each."""
    archive = WORK / "visit.tar"
    with tarfile.open(archive, "w") as tar:
        if (WORK / "tables").exists():
            tar.add(WORK / "tables", "tables")
        for run in sorted((WORK / "runs").iterdir()):
            checkpoints = run / "checkpoints"
            kept = {*manifest.steps(checkpoints)[-1:], manifest.best(checkpoints)} - {None}
            files = [path for path in run.iterdir() if path.is_file() and path.name != ".lock"]
            for path in (*files, *(checkpoints / str(step) for step in sorted(kept))):
                tar.add(path, path.relative_to(WORK))
    names = []
    with archive.open("rb") as file:
        while content := file.read(PART_BYTES):
            names.append(f"visit.tar.{len(names):02d}")
            (output / names[-1]).write_bytes(content)
    archive.unlink()
    return names


def unpack(earlier: Path) -> None:
    """Restores tables and runs that an earlier visit packed."""
    archive = WORK / "visit.tar"
    with archive.open("wb") as whole:
        for part in sorted(earlier.glob("visit.tar.*")):
            whole.write(part.read_bytes())
    with tarfile.open(archive) as tar:
        tar.extractall(WORK, filter="data")
    archive.unlink()


def check(parser: Parser, args: argparse.Namespace) -> None:
    """Ends with a line where the options cannot be met, before a minute is spent."""
    if args.minutes < 1:
        parser.error("--minutes must be at least 1")
    if "rows" in args.parts:
        if not (args.data and (args.data / "cifar100").is_dir()):
            parser.error(f"--data={args.data}: contains no folder cifar100; set it, or leave rows out of --parts")
        if not (args.teacher and args.teacher.is_file()):
            parser.error(f"--teacher={args.teacher}: is not a file; set it, or leave rows out of --parts")
    if args.earlier and not any(args.earlier.glob("visit.tar.*")):
        parser.error(f"--earlier={args.earlier}: contains no visit.tar.00; set the --output of an earlier visit")
    if args.earlier and (WORK / "runs").exists():
        parser.error(f"{WORK / 'runs'} exists: remove it, or leave --earlier out to go on with the runs in it")


def prepare(args: argparse.Namespace) -> None:
    """Makes the folders, with the runs of an earlier visit."""
    args.output.mkdir(parents=True, exist_ok=True)
    (WORK / "runs").mkdir(parents=True, exist_ok=True)
    if args.earlier:
        unpack(args.earlier)
    if args.data:
        (WORK / "data").unlink(missing_ok=True)
        (WORK / "data").symlink_to(args.data.resolve())


def main() -> int:
    """Runs the parts; the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--data", type=Path, help="contains cifar100/3.0.2")
    parser.add_argument("--teacher", type=Path, help="the published ResNet-56")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, help="the --output of an earlier visit, whose runs go on")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=["golden", "step"])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few images, one epoch a row")
    args = parser.parse_args()
    check(parser, args)
    prepare(args)
    visit = Visit(args.minutes, args.output, args.device)
    found: dict = {"command": sys.argv}
    if args.data and (commit := args.data / "commit").exists():  # of carry.sh, since a copied tree has no history
        found["commit"] = commit.read_text().strip()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for part in args.parts:
            if part == "rows":
                run_rows(visit, args)
            else:
                run_benchmark(visit, part, args)
    finally:
        visit.log.close()
        found |= {"parts": visit.parts, "runs": [progress(run) for run in sorted((WORK / "runs").iterdir())]}
        found["files"] = pack(args.output)
        (args.output / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    for table in sorted((WORK / "tables").glob("*.md")):
        print(f"\n{table.read_text()}")
    print(json.dumps(found, indent=1))
    failed = [p for p in visit.parts if p["ended"].startswith("status") and p["ended"] != "status 0"]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
