"""Images a second of the whole HSAKD training step, ours and PyTorch's, alternating in one run.

    python -m benchmarks.step [--pair TEACHER:STUDENT ...] [--device cpu|gpu|tpu] [--against torch] [--batch 64]
        [--processes 3] [--rounds 5] [--steps 1] [--dtype float32|bfloat16] [--remat] [--pieces] [--output NAME]

A step takes a batch of uint8 images and crops, flips, normalises and rotates it, runs the teacher, runs the student
forward and backward, and updates it. Both sides do it on the same device. Rates count images before rotation. Medians
over all rounds with the quartiles; the sides take turns within each round, since a shared machine drifts.

Each side has a process of its own, with the memory settings its user would have, and --processes times a new one: the
same program may differ by a tenth from process to process, by where its memory lies.

--against names PyTorch's variants with commas between them: 'eager' (as the reference does it, channels first) with
'channels_last', 'compile' and 'bfloat16' joined by '+'; 'torch' is eager and channels_last on CPU, and on a GPU eager
and channels_last+compile+bfloat16. 'none' measures ours alone. --steps is how many steps are timed together: on an
accelerator, our side makes them in one call. Memory is the process's greatest on CPU, the device's on a GPU. The peak
is a matrix product's rate on the same device, in our process of each pair; FLOP are those of plain convolutions, so
that forms with fewer products may be above it. How far two cores are from each other is told too (`benchmarks.cores`,
at the start of each round), for on some machines it changes. Prints a Markdown table and writes it and JSON to
benchmarks/results/NAME.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, cast

from hsakd_jax.core import runtime
from hsakd_jax.data.dataset import Dataset

# As every command does; but PyTorch's process has the memory settings that its user has.
if not any(word.startswith("torch ") for word in sys.argv):
    # Not the process that starts PyTorch's, which would inherit the setting.
    runtime.configure_runtime(restart="--side" in sys.argv)
    runtime.configure_compilation()

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import Parser, file_name, warn_if_busy
from benchmarks.cores import exchange_ns
from benchmarks.exports import random_variables
from configs import cifar100
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import datasets
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.experiments.resolve import resolve
from hsakd_jax.models import create, profile
from hsakd_jax.models.rotations import ROTATIONS
from hsakd_jax.runs import provenance
from hsakd_jax.training import build, teachers
from hsakd_jax.training.multi_step import make_multi_step

RESULTS = Path(__file__).parent / "results"
PAIRS = (
    "wrn_40_2:wrn_16_2",
    "wrn_40_2:wrn_40_1",
    "resnet56:resnet20",
    "resnet32x4:resnet8x4",
    "vgg13_bn:mobilenetV2",
    "ResNet50:mobilenetV2",
    "wrn_40_2:ShuffleV1",
    "resnet32x4:ShuffleV2",
    "resnet34_imagenet:resnet18_imagenet",
)
CIFAR_PAIRS = tuple(pair for pair in PAIRS if not pair.endswith("_imagenet"))
CIFAR_IMAGES = 50_000
OURS = "hsakd_jax"
VARIANTS = ("eager", "channels_last", "compile", "bfloat16")
PIECES = ("teacher forward", "student forward", "student both")
Step = Callable[[], None]


def save(benchmark: str, name: str, content: dict, lines: list[str]) -> None:
    """Writes results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join([f"# benchmarks.{benchmark}: {name}\n", *lines, ""]))


def make_data(pair: str, images: int) -> tuple[Dataset, int]:
    """Random uint8 images with labels, and the number of classes."""
    side, classes = (224, 1000) if pair.endswith("_imagenet") else (32, 100)
    random = np.random.default_rng(0)
    dataset = Dataset(
        random.integers(0, 256, (images, side, side, 3), np.uint8), random.integers(0, classes, images, np.int32)
    )
    return dataset, classes


def compile_ours(pair: str, batch: int, dtype: str, devices: Devices, **options):
    """(network, teacher as it was trained, init, step, images) of a student's run, as `train` makes them."""
    teacher_name, student_name = pair.split(":")
    dataset, classes = make_data(pair, batch)
    network, teacher = create(student_name, classes, dtype=dtype), create(teacher_name, classes, dtype=dtype)
    network = network.clone(**options)
    config = cifar100.get_config("student").to_dict()
    config["student"] |= {"arch": student_name, "dtype": dtype, "batch": batch, "lr": 1e-4}
    config["teacher"] |= {"workdir": "none"}
    splits = datasets.Splits(dataset, None, dataset, tuple(map(str, range(classes))))
    run = resolve(config, "student", splits)
    program = build.make_program(run, network, teachers.inference_form(teacher), dataset, devices)
    return network, teacher, program.init, program.step, dataset


def our_step(pair: str, batch: int, dtype: str, **options):
    """(step, its first arguments, devices, images) of a student's run."""
    devices = Devices()
    network, teacher, init, step, dataset = compile_ours(pair, batch, dtype, devices, **options)
    shape = dataset.images.shape[1:]
    _, taught = teachers.to_inference(teacher, random_variables(teacher, shape), shape)
    arguments = devices.replicate((init(random_variables(network, shape)), taught))
    return step, arguments, devices, dataset


def batch_of(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """A whole dataset as a batch: images, labels, positions."""
    return (dataset.images, dataset.labels, np.arange(len(dataset.labels), dtype=np.int32))


def ours(pair: str, batch: int, dtype: str, steps: int = 1, remat: bool = False) -> tuple[Step, dict]:
    """Our steps as a function that waits for their end, and what compiling one took and needs."""
    step, (state, taught), devices, dataset = our_step(pair, batch, dtype, remat=remat)
    needed, done, began = None, 0, time.perf_counter()
    if jax.default_backend() == "cpu":
        step = step.lower(state, taught, *devices.shard(batch_of(dataset))).compile()
        if memory := step.memory_analysis():
            needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    multi_step = make_multi_step(step, dataset, devices, batch, 0)  # the transfer of a batch is part of a step

    def several():
        nonlocal state, done
        until = done + steps
        while done < until:
            state, done = multi_step(state, taught, done, until)
        jax.block_until_ready(state)

    if jax.default_backend() != "cpu":  # the program that makes several steps is compiled by its first call
        several()
    return several, {"compile_s": time.perf_counter() - began, "program_bytes": needed}


def check_torch(parser: Parser, against: str) -> None:
    """Ends with a line where PyTorch is asked for and not installed."""
    if against != "none" and importlib.util.find_spec("torch") is None:
        parser.error("--against: PyTorch is not installed: pip install -e '.[torch]', or give --against none")


def missing_plugin(backend: str) -> str:
    """What pip must be given for JAX's 'gpu' or 'tpu'; '' where its plug-in is installed."""
    module, extra = {"gpu": ("jax_plugins", "cuda12"), "tpu": ("libtpu", "tpu")}[backend]
    return "" if importlib.util.find_spec(module) else f"'jax[{extra}]=={jax.__version__}'"


def torch_trainer(pair: str, classes: int, variant: str):
    """(student, update): PyTorch's step on normalised NCHW images, from their rotation on; `update` gives the loss."""
    import torch
    import torch.nn.functional as F

    from benchmarks import torch_networks

    device = torch_device()
    torch.backends.cudnn.benchmark = True
    form = torch.channels_last if "channels_last" in variant else torch.contiguous_format
    teacher, student = (torch_networks.create(name, classes, True).to(device) for name in pair.split(":"))
    teacher, student = teacher.to(memory_format=form).eval(), student.to(memory_format=form).train()
    optimizer = torch.optim.SGD(student.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4, nesterov=True)
    if "compile" in variant:
        teacher, student = torch.compile(teacher), torch.compile(student)

    def kl(ours, theirs, temperature=3.0):
        log_p, q = F.log_softmax(ours / temperature, 1), F.softmax(theirs / temperature, 1)
        return temperature**2 * F.kl_div(log_p, q, reduction="batchmean")

    def update(x, y):
        x = torch.stack([x.rot90(k, (2, 3)) for k in range(ROTATIONS)], 1).flatten(0, 1).contiguous(memory_format=form)
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in variant):
            with torch.no_grad():
                taught, taught_aux = teacher(x)
            logits, aux = student(x)
            loss = F.cross_entropy(logits[::ROTATIONS].float(), y) + kl(logits.float(), taught.float())
            loss = loss + sum(kl(q.float(), t.float()) for q, t in zip(aux, taught_aux, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return student, update


def torch_device() -> str:
    """PyTorch's name of the device that JAX computes on."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def theirs(pair: str, batch: int, variant: str, steps: int = 1) -> Step:
    """PyTorch's steps, as the reference does it (eager) or faster: channels_last, compile, bfloat16, joined by +."""
    import torch
    import torch.nn.functional as F

    device = torch_device()
    dataset, classes = make_data(pair, batch)
    images, labels = dataset.images, dataset.labels
    _, update = torch_trainer(pair, classes, variant)
    normal = NORMALISATION["cifar100"]
    mean, std = (torch.tensor(normal[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    given, y = torch.from_numpy(images), torch.from_numpy(labels).long()
    if "compile" in variant:  # the strongest: data that lies on the device
        given, y = given.to(device), y.to(device)
    side = images.shape[1]

    def augment(x):
        corners = torch.randint(0, 9, (2, len(x), 1), device=device)
        rows, columns = (corner + torch.arange(side, device=device) for corner in corners)
        x = F.pad(x, (0, 0, 4, 4, 4, 4))[
            torch.arange(len(x), device=device)[:, None, None], rows[:, :, None], columns[:, None]
        ]
        flip = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
        return torch.where(flip, x.flip(2), x)

    def several():
        for _ in range(steps):
            x = augment(given.to(device)).permute(0, 3, 1, 2).float().div_(255).sub(mean).div_(std)
            update(x, y.to(device))
        if device == "cuda":
            torch.cuda.synchronize()

    return several


def measure(steps: dict[str, Step], rounds: int, before: Callable[[], object] = lambda: None) -> dict[str, list[float]]:
    """Seconds of each step in each round; the sides take turns, also before, until the process has all its memory.

    `before` is called at the start of each round.
    """
    for _ in range(4):
        for step in steps.values():
            step()
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        before()
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def flops(pair: str) -> float:
    """Of a step for one image: the teacher forward, the student forward and backward, on four rotations."""
    side, classes = (224, 1000) if pair.endswith("_imagenet") else (32, 100)
    teacher, student = (
        profile.totals(create(name, classes), (side, side, 3))["multiply_adds"] for name in pair.split(":")
    )
    return 2.0 * ROTATIONS * (teacher + 3 * student)


def pieces(pair: str, batch: int, dtype: str) -> dict[str, tuple[Step, float]]:
    """Our teacher's forward pass, the student's, and both its passes: each alone, with its FLOP."""
    dataset, classes = make_data(pair, batch)
    shape = dataset.images.shape[1:]
    images = jnp.asarray(np.random.default_rng(0).standard_normal((ROTATIONS * batch, *shape)), jnp.float32)
    found = {}
    for name, arch, training in (
        ("teacher forward", 0, False),
        ("student forward", 1, True),
        ("student both", 1, True),
    ):
        network = create(pair.split(":")[arch], classes, dtype=dtype)
        work = 2.0 * ROTATIONS * batch * profile.totals(network, shape)["multiply_adds"]
        variables = random_variables(network, shape)
        if not training:
            network, variables = teachers.to_inference(network, variables, shape)
        variables = jax.device_put(variables)

        def forward(params, images, network=network, variables=variables, training=training):
            given = {**variables, "params": params}
            if training:
                outputs, _ = network.apply(given, images, True, mutable=["batch_stats"])
            else:
                outputs = network.apply(given, images)
            return outputs.logits, outputs.aux_logits

        def both(params, images, forward=forward):
            return jax.grad(lambda params: sum(jnp.square(q).sum() for q in jax.tree.leaves(forward(params, images))))(
                params
            )

        compiled = Devices().jit(both if name == "student both" else forward, replicated=1)
        run = partial(lambda compiled, params: jax.block_until_ready(compiled(params, images)), compiled)
        found[name] = partial(run, variables["params"]), work * (3 if name == "student both" else 1)
    return found


def peak(dtype: str) -> float:
    """FLOP a second of a product of two square matrices: the greatest of three sizes, ten times each."""
    random, rates = np.random.default_rng(0), []
    for size in (1024, 2048, 4096):
        matrix = jnp.asarray(random.standard_normal((size, size)), dtype)
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(matrix, matrix))
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(product(matrix, matrix))
            rates.append(2 * size**3 / (time.perf_counter() - began))
    return max(rates)


def make_side(name: str, pair: str, args: argparse.Namespace) -> tuple[Step, dict]:
    """A side's function that is timed, and what is known of it before: ours, 'torch VARIANT', or a piece of ours."""
    if name == OURS:
        about = {"environment": provenance.environment(), "peak_flops": peak(args.dtype)}
        step, compiled = ours(pair, args.batch, args.dtype, args.steps, args.remat)
        return step, about | compiled
    if name.startswith("torch "):
        import torch

        return theirs(pair, args.batch, name.removeprefix("torch "), args.steps), {"torch": torch.__version__}
    step, work = pieces(pair, args.batch, args.dtype)[name]
    return step, {"work": work}


def peak_bytes(name: str) -> int:
    """The most memory that this process, or on a GPU its side of the device, has held."""
    if jax.default_backend() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if name.startswith("torch "):
        import torch

        return torch.cuda.max_memory_allocated()
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def serve(name: str, step: Step, about: dict) -> None:
    """What the process of a `Side` does: a step for each line that comes in, and a line out when it is done."""
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        step()
        print(peak_bytes(name), flush=True)


class Side:
    """A side in a process of its own, `python -m benchmarks.MODULE WORDS`; a call has it make its steps."""

    def __init__(self, module: str, words: list[str]):
        # On a GPU, the others' processes need memory as well.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        line = [sys.executable, "-m", f"benchmarks.{module}", *words]
        # A terminal's Ctrl-C is for the process that starts it, which ends it.
        self.process = subprocess.Popen(
            line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.words, self.answers = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.bytes = 0
        try:
            self.about = json.loads(self.answer())
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def answer(self) -> str:
        """Its next line.

        Raises:
          SystemExit: the process ended; it has said why.
        """
        if not (line := self.answers.readline()):
            raise SystemExit(self.process.wait() or 1)
        return line

    def __call__(self) -> None:
        self.words.write("\n")
        self.words.flush()
        self.bytes = int(self.answer())

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_) -> None:
        if kind:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.words.close()  # which ends it, if it has not ended
        self.answers.close()
        self.process.wait()


def compare(
    names: list[str], pair: str, words: list[str], args: argparse.Namespace, on_cpu: bool
) -> tuple[dict, dict, list, list]:
    """(seconds of a step of each side, a list for each process; of each side; each round's exchange; other work)."""
    seconds, greatest, most = {name: [] for name in names}, 0.0, dict.fromkeys(names, 0)
    exchanges, others, rounds = [], [], itertools.count(1)

    def look() -> None:
        others.append(warn_if_busy())
        print(f"{pair}: round {next(rounds)} of {args.processes * args.rounds}", file=sys.stderr, flush=True)
        if on_cpu:
            exchanges.append(exchange_ns())

    for i in range(args.processes):
        # Compiling comes first, and takes half a minute and more.
        print(f"{pair}: process {i + 1} of {args.processes} of each side", file=sys.stderr, flush=True)
        others.append(warn_if_busy())
        with contextlib.ExitStack() as stack:
            # The last --pair counts, and the last --side.
            lines = {name: [*words, "--pair", pair, "--side", name] for name in names}
            sides = {name: stack.enter_context(Side("step", line)) for name, line in lines.items()}
            for name, times in measure(sides, args.rounds, look).items():
                # A piece is made once a turn.
                seconds[name].append([t / (1 if name in PIECES else args.steps) for t in times])
            most = {name: max(most[name], side.bytes) for name, side in sides.items()}
            about = {name: {**side.about, "peak_bytes": most[name]} for name, side in sides.items()}
            greatest = about[OURS]["peak_flops"] = max(greatest, about[OURS]["peak_flops"])
    return seconds, about, exchanges, [*filter(None, others)]


def main() -> None:
    """Measures and prints."""
    parser = Parser(__doc__)
    several = "those of CIFAR by default; may be given several times"
    parser.add_argument("--pair", action="append", choices=PAIRS, help=several)
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], help="JAX's default one otherwise")
    parser.add_argument("--against", default="torch", help="variants with commas between them, torch, or none")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--processes", type=int, default=3, help="of each side and pair")
    parser.add_argument("--rounds", type=int, default=5, help="in each process")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--remat", action="store_true", help="ours with activations computed again")
    parser.add_argument("--pieces", action="store_true", help="where the time of ours goes, piece by piece")
    parser.add_argument("--output", type=file_name, help="name of the files in benchmarks/results/, written anew")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # what a process of `Side` is
    args = parser.parse_args()
    if bad := [n for n in ("batch", "processes", "rounds", "steps") if getattr(args, n) < 1]:
        parser.error(f"--{bad[0]} must be at least 1")
    named = [] if args.against in ("torch", "none") else args.against.replace(",", "+").split("+")
    if unknown := sorted({*named} - {*VARIANTS}):
        parser.error(f"--against: there is no {unknown[0]!r}: take torch, none, or some of {', '.join(VARIANTS)}")
    if (args.device or runtime.installed_accelerator()) == "tpu" and args.against != "none":
        parser.error("--against: PyTorch is not measured on a TPU: give --against none")
    check_torch(parser, args.against)
    if args.device not in (None, "cpu") and (package := missing_plugin(args.device)):
        parser.error(f"--device={args.device}: JAX's plug-in for it is not installed: pip install {package}")
    if args.device:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(args.device, args.device))
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is measured
    if args.side:
        args.pair = args.pair[-1:]
        try:
            jax.devices()
        except (AssertionError, RuntimeError) as error:
            why = str(error).partition("\n")[0] or "it knows no such platform"  # an assertion of JAX says nothing
            parser.error(f"--device: JAX finds no {args.device or 'device'} on this machine ({why})")
        return serve(args.side, *make_side(args.side, args.pair[0], args))
    # This process touches no accelerator, whose memory its sides need.
    on_cpu = (args.device or runtime.installed_accelerator() or "cpu") == "cpu"
    strongest = "channels_last" if on_cpu else "channels_last+compile+bfloat16"
    against = {"torch": ["eager", strongest], "none": []}.get(args.against, args.against.split(","))
    words = sys.argv[1:]
    rivals = [f"torch {variant}" for variant in against]
    parts = list(PIECES) if args.pieces else []
    lines, results = [], []
    for pair in args.pair or CIFAR_PAIRS:
        seconds, about, exchanges, others = compare([OURS, *rivals, *parts], pair, words, args, on_cpu)
        ours_about = about[OURS]
        environment, greatest = ours_about.pop("environment"), ours_about["peak_flops"]
        for rival in rivals:
            environment["versions"]["torch"] = about[rival].pop("torch")
        if not lines:
            cores = f", {len(os.sched_getaffinity(0))} cores" if on_cpu else ""
            lines = [
                f"{environment['device']}{cores}, batch {args.batch} x {ROTATIONS}, {args.dtype}, {args.processes} "
                f"processes of each side, {args.rounds} rounds of {args.steps} in each; jax {jax.__version__}, torch "
                f"{environment['versions'].get('torch', '-')}",
                "",
                "| pair | side | images/s | quartiles | s an epoch of 50,000 | TFLOP/s | of the peak | MiB "
                "| ours is faster by |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
            print("\n".join(lines), flush=True)
        all_times = {name: list(itertools.chain(*times)) for name, times in seconds.items()}
        fastest = statistics.median(all_times[OURS])
        for name in (OURS, *rivals):
            low, middle, high = np.quantile(all_times[name], (0.25, 0.5, 0.75))
            rate, ratio = args.batch / middle, "" if name == OURS else f"{middle / fastest:.2f}"
            done = flops(pair) * rate
            lines.append(
                f"| {pair} | {name} | {rate:,.1f} | {args.batch / high:,.1f} to {args.batch / low:,.1f} | "
                f"{CIFAR_IMAGES / rate:,.0f} | {done / 1e12:.3f} | {done / greatest:.0%} | "
                f"{about[name]['peak_bytes'] / 2**20:,.0f} | {ratio} |"
            )
            print(lines[-1], flush=True)
        needs = f"{needed / 2**20:,.0f} MiB by its program" if (needed := ours_about["program_bytes"]) else ""
        peak_rate = f"{greatest / 1e12:.3f} | the peak, a matrix product's"
        lines.append(f"| | compiled in {ours_about['compile_s']:.0f} s | {needs} | | | {peak_rate} | | |")
        print(lines[-1], flush=True)
        if exchanges and None not in exchanges:
            lines.append(
                f"| | a byte from core to core: {min(exchanges):.0f} to {max(exchanges):.0f} ns | | | | | | | |"
            )
            print(lines[-1], flush=True)
        if others:
            lines.append(f"| | {others[0]} | | | | | | | |")
            print(lines[-1], flush=True)
        for name in parts:
            middle = statistics.median(all_times[name])
            rate = about[name]["work"] / middle
            lines.append(f"| | {name}: {middle:.3f} s | | | | {rate / 1e12:.3f} | {rate / greatest:.0%} | | |")
            print(lines[-1], flush=True)
        results.append(
            {
                "pair": pair,
                "batch": args.batch,
                "dtype": args.dtype,
                "seconds": seconds,
                "exchange_ns": exchanges,
                "other_work": others,
                "sides": about,
            }
        )
        if args.output:
            save("step", args.output, {"environment": environment, "steps": args.steps, "pairs": results}, lines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the sides too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
