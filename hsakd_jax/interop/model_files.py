"""Exported files in their own runtimes, measured on test images. Nothing foreign in a file is executed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.console import Progress, table
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import INSTALL_ONNX
from hsakd_jax.core.failures import explain
from hsakd_jax.core.files import expand
from hsakd_jax.data.augment import crop_to, prepare
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.streaming import Photos
from hsakd_jax.evaluation import metrics
from hsakd_jax.evaluation.accuracy import batches_of, load_test, preprocessing
from hsakd_jax.interop import torch_files, torch_weights
from hsakd_jax.interop.preprocessing import read_record, record_difference, record_of
from hsakd_jax.models import create
from hsakd_jax.runs.compare import match_classes
from hsakd_jax.runs.config import Config
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import peer_config, without_branches

BATCHES = (1, 64)  # of which the speed is measured
SECONDS, CALLS = 1.0, 5  # a batch is timed for this long, and at least this often
# The one operation of a foreign kind that `jax.export` writes for a network: it checks the size of the batch. Others
# could call any function of the process.
CUSTOM_CALL = "stablehlo.custom_call @shape_assertion("
FOREIGN = ("custom_call", "stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv")


class Program(NamedTuple):
    """An exported file, ready to run.

    Attributes:
      runtime: which runs it, such as 'onnxruntime 1.30.0, CPU'.
      takes_pixels: whether its images are uint8, and not normalised.
      run: images [B, H, W, C] -> logits or probabilities [B, N], NumPy arrays.
    """

    runtime: str
    takes_pixels: bool
    run: Callable[[np.ndarray], np.ndarray]


class Measured(NamedTuple):
    """Accuracy and speed of an exported file in its runtime.

    Attributes:
      file: its name in tables.
      runtime: see `Program`.
      bytes: of the file.
      test_images: how many.
      top1: in percent.
      top5: in percent.
      images_per_s: by the images in a batch, the median.
      correct: whether the class of each image is correct, bool [test_images], in their order.
    """

    file: str
    runtime: str
    bytes: int
    test_images: int
    top1: float
    top5: float
    images_per_s: dict[int, float]
    correct: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """All but `correct`."""
        return {key: value for key, value in self._asdict().items() if key != "correct"}


def evaluate_file(path: str | Path, run_dir: str | Path, data_dir: str | None = None) -> Measured:
    """Measures an exported file on the test images of a run, in the file's own runtime.

    Args:
      path: a file whose ending is a key of `READERS`, or a folder for the Hub.
      run_dir: the run directory, for its data, preprocessing and classes.
      data_dir: folder of the data, if it has moved; None for the run's.

    Raises:
      UserError: as `find`, `open_program` and `accuracy.load_test`.
    """
    directory = RunDirectory(run_dir)
    config = directory.config()
    path = find(path)
    program = open_program(path, config, directory.path)  # first: it takes less time to refuse a file than to load data
    return measure(program, path, config, load_test(directory.path, config, data_dir))


def find(path: str | Path) -> Path:
    """The exported file at a path, which may be a folder for the Hub.

    Raises:
      UserError: there is none, or its ending names no format.
    """
    path = expand(path)
    if path.is_dir() and (path / torch_files.WEIGHTS).exists():
        path = path / torch_files.WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is no file: check the path")
    if path.suffix not in READERS:
        raise UserError(f"{path} has none of the endings {', '.join(READERS)}: rename it to that of its format")
    return path


def open_program(path: Path, config: Config, run: Path) -> Program:
    """Opens an exported file, which may be a stranger's.

    Args:
      path: of `find`.
      config: of the run.
      run: its directory, for errors.

    Raises:
      UserError: the file is damaged, would execute foreign code, or needs a package that is not installed. Or it has
        other images or classes than the run: an ONNX or StableHLO file by their shape and number, weights that
        `export` wrote by all settings. `run` of the result raises one where the outputs are not of [B, N].
    """
    program = READERS[path.suffix](path, config, run)
    if READERS[path.suffix] is _weights:  # which our own network runs
        return program

    def scores(images: np.ndarray) -> np.ndarray:
        try:
            found = np.asarray(program.run(images))
        except Exception as error:  # a stranger's program can fail in any way
            if explain(error):  # such as too little memory, whose remedy is another one
                raise
            raise UserError(
                f"{path} fails on images of {list(images.shape)} ({_reason(error)}): export it again"
            ) from error
        expected = (len(images), config.network.num_classes)
        if found.shape != expected or not jnp.issubdtype(found.dtype, jnp.floating):
            raise UserError(
                f"{path} has outputs of {found.dtype} {list(found.shape)}, not floating point {list(expected)}: export "
                "it again"
            )
        return found

    return program._replace(run=scores)


def measure(program: Program, path: Path, config: Config, test: Dataset | Photos, label: str | None = None) -> Measured:
    """Measures accuracy and speed of a program.

    Args:
      program: of `open_program`.
      path: its file.
      config: of the run.
      test: its test images.
      label: name of the file in the table; None for its own.

    Raises:
      UserError: of the program, or of a test image that can't be read.
    """
    make_inputs = inputs_of(config, program.takes_pixels)
    found: dict[int, list[np.ndarray]] = {1: [], 5: []}
    first = np.zeros((0,))
    with Progress(f"Evaluating {label or path.name}", len(test.labels)) as progress:
        for done, rows in enumerate(batches_of(config, test, config.eval_batch), 1):
            inputs = make_inputs(rows["image"])
            first = first if len(first) else inputs
            scores = program.run(inputs)
            for k, right in found.items():
                right.append(np.asarray(metrics.in_top(jnp.asarray(scores), jnp.asarray(rows["label"]), k)))
            progress.update(min(done * config.eval_batch, len(test.labels)))
    correct = {k: np.concatenate(right)[: len(test.labels)] for k, right in found.items()}  # padding is at the end
    return Measured(
        file=label or path.name,
        runtime=program.runtime,
        bytes=path.stat().st_size,
        test_images=len(test.labels),
        top1=100 * float(correct[1].mean()),
        top5=100 * float(correct[5].mean()),
        images_per_s={n: n / _seconds(program, np.resize(first, (n, *first.shape[1:]))) for n in BATCHES},
        correct=correct[1],
    )


def inputs_of(config: Config, takes_pixels: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a run's uint8 images to those that a program takes: cropped, and normalised unless it does so."""
    settings = preprocessing(config)
    crop = {key: settings[key] for key in ("shape", "resize", "interpolation")}

    @jax.jit
    def make(images):
        return crop_to(images, **crop) if takes_pixels else prepare(images, **settings)

    return lambda images: np.asarray(make(images))


def _seconds(program: Program, inputs: np.ndarray) -> float:
    """The median time of a call, after the first one, which may compile."""
    program.run(inputs)
    times: list[float] = []
    while len(times) < CALLS or sum(times) < SECONDS:
        began = time.perf_counter()
        program.run(inputs)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def as_table(measured: list[Measured], classes: int) -> str:
    """The measured files as text, with the speed at each size of a batch; without top-5 of at most five classes."""
    top5 = classes > 5
    header = [
        "file",
        "runtime",
        "MB",
        "top-1 %",
        *["top-5 %"] * top5,
        *(f"images/s at {n}" for n in BATCHES),
        "ms at 1",
    ]
    rows = [
        [one.file, one.runtime, f"{one.bytes / 1e6:.2f}", f"{one.top1:.2f}", *[f"{one.top5:.2f}"] * top5]
        + [f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}" for speed in one.images_per_s.values()]
        + [f"{1000 / one.images_per_s[1]:.3g}"]
        for one in measured
    ]
    return table(header, rows, left=2)


def _check_images(path: Path, shape: list[Any], dtype: str, config: Config, run: Path) -> bool:
    """Whether a program takes uint8 images; those of another shape or type are refused."""
    expected = list(config.network.image_shape)
    if dtype not in ("uint8", "float32") or len(shape) != 4:
        raise UserError(f"{path} takes {dtype} arrays of {shape}, not images [B, H, W, C] of uint8 or float32")
    if shape[1:] != expected:
        raise UserError(f"{path} takes images of {shape[1:]}, those of {run} are {expected}: choose its own run")
    if isinstance(shape[0], int):
        raise UserError(f"{path} takes batches of {shape[0]} only: export it for any batch size")
    return dtype == "uint8"


def _onnx(path: Path, config: Config, run: Path) -> Program:
    """ONNX contains no code: only a caller could register custom operations."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}: {INSTALL_ONNX}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions too
    content = path.read_bytes()
    try:
        outside = any(tensor.external_data for tensor in onnx.load_model_from_string(content).graph.initializer)
        session = None if outside else onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise _damaged(path, "ONNX", error) from error
    if session is None:
        raise UserError(f"{path} reads its weights from other files: save it as one file")
    if len(session.get_inputs()) != 1:
        raise UserError(f"{path} takes {len(session.get_inputs())} inputs, not images alone: export it again")
    (images,), outputs = session.get_inputs(), session.get_outputs()
    dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(str(images.type), str(images.type))
    takes_pixels = _check_images(path, list(images.shape), dtype, config, run)
    return Program(
        f"onnxruntime {onnxruntime.__version__}, CPU",
        takes_pixels,
        lambda inputs: session.run([outputs[0].name], {images.name: inputs})[0],
    )


def _stablehlo(path: Path, config: Config, run: Path) -> Program:
    from jax import export as jax_export

    try:
        exported = jax_export.deserialize(bytearray(path.read_bytes()))
        text = exported.mlir_module()
        shapes = [(aval.shape, str(aval.dtype)) for aval in exported.in_avals]
    except Exception as error:  # as above
        raise _damaged(path, "StableHLO", error) from error
    if sum(map(text.count, FOREIGN)) != text.count(CUSTOM_CALL):
        raise UserError(f"{path} calls code outside of the file, so it was not run: export the network again")
    if len(shapes) != 1:
        raise UserError(f"{path} takes {len(shapes)} inputs, not images alone: export it again")
    ((shape, dtype),) = shapes
    takes_pixels = _check_images(path, [n if isinstance(n, int) else str(n) for n in shape], dtype, config, run)
    if jax.default_backend() not in [*exported.platforms, *(["gpu"] if "cuda" in exported.platforms else [])]:
        raise UserError(f"{path} is for {', '.join(exported.platforms)}: set JAX_PLATFORMS to one of these")
    call = jax.jit(exported.call)
    return Program(_jax(), takes_pixels, lambda inputs: np.asarray(jax.tree.leaves(call(inputs))[0]))


def _weights(path: Path, config: Config, run: Path) -> Program:
    """Weights alone, in our own network."""
    described = peer_config(config.network, run)
    content = torch_files.read(path)
    tensors, _ = torch_weights.unwrap(content, str(path))
    found = torch_weights.recognise(tensors, described.arch, str(path))
    for what, theirs, ours in (
        ("classes", found.num_classes, described.num_classes),
        ("channels", found.channels, described.image_shape[-1]),
    ):
        if theirs != ours:
            raise UserError(f"{path} is for {theirs} {what}, {run} has {ours}: choose its own run")
    _check_settings(content.record, path, config, run)
    network: Any = create(found.name, found.num_classes, branches=False, dtype=described.dtype)
    variables = without_branches(torch_weights.to_variables(tensors, found, str(path)))
    settings = preprocessing(config)
    # The variables are no constants of the program, which XLA would compute with when it compiles.
    call = jax.jit(lambda variables, images: network.apply(variables, prepare(images, **settings)).logits)
    return Program(_jax(), True, lambda inputs: np.asarray(call(variables, inputs)))


def _check_settings(content: str, path: Path, config: Config, run: Path) -> None:
    """Refuses weights that `export` wrote for other images or classes than the run's."""
    theirs, ours = read_record(content), record_of(config)
    if theirs is None or ours is None:
        return
    match = match_classes(config, run, config.network.num_classes, theirs.classes, str(path))
    if match.order is not None:
        raise UserError(f"{path} has the classes of {run} in another order: choose its own run")
    if match.difference:
        raise UserError(f"{run} {match.difference} in {path}: choose the file's own run")
    if differing := record_difference(theirs, ours):
        raise UserError(f"{path} was exported with other settings than those of {run}, {differing}: choose its own run")


def _jax() -> str:
    return f"jax {jax.__version__}, {jax.default_backend().upper()}"


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or no {kind} file ({_reason(error)}): export it again")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


READERS: dict[str, Callable[[Path, Config, Path], Program]] = {
    ".onnx": _onnx,
    ".stablehlo": _stablehlo,
    ".safetensors": _weights,
    ".pth": _weights,
    ".pt": _weights,
}
