"""Writes trained networks for other software; each file is read back and compared before it is kept."""

import io
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from msgspec import structs

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import INSTALL_ONNX, install
from hsakd_jax.core.failures import remedy
from hsakd_jax.core.files import check_folder, expand
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import prepare
from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.image_files import UnreadableImageError
from hsakd_jax.data.streaming import Photos
from hsakd_jax.evaluation.accuracy import check_named, load_test, preprocessing
from hsakd_jax.interop import hub, model_files, quantising, torch_files, torch_weights
from hsakd_jax.interop.preprocessing import WITHOUT_RECORD, record_of
from hsakd_jax.models import profile
from hsakd_jax.models.folding import Folded
from hsakd_jax.runs.config import Config
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import restore, without_branches

# The difference that float32 arithmetic in another order may make, relative to the greatest output.
TOLERANCE = 1e-4
# From NumPy images to the outputs in a sequence.
Run = Callable[[np.ndarray], Any]


class Export:
    """The parts of an export: a network, its variables and the form of its images.

    Attributes:
      infer: images -> (logits, aux logits of each branch ...); with preprocessing uint8 images -> (probabilities,).
      apply: the same of (variables, images).
      images: `images(n)` makes n NHWC images such as `infer` takes.
      config: of the run.
    """

    def __init__(self, arch: str, network: Any, variables: Any, config: Config, preprocess: bool):
        self.arch, self.network, self.variables = arch, network.clone(for_export=True), variables
        self.config, self.shape = config, config.network.image_shape
        self.preprocess, self.dtype = preprocess, jnp.uint8 if preprocess else jnp.float32
        self.apply = jax.jit(self.program(self.network))
        self.infer = partial(self.apply, self.variables)

    def program(self, network: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
        """`apply` by another form of the network, such as `Folded`."""
        settings = preprocessing(self.config)

        def apply(variables: Any, images: Any) -> tuple[Any, ...]:
            if self.preprocess:
                return (jax.nn.softmax(network.apply(variables, prepare(images, **settings)).logits),)
            outputs = network.apply(variables, images)
            return (outputs.logits, *outputs.aux_logits)

        return apply

    def images(self, n: int) -> np.ndarray:
        """Random images, the same at each call."""
        random = np.random.default_rng(n)
        if self.dtype == jnp.uint8:
            return random.integers(0, 256, (n, *self.shape), np.uint8)
        return random.standard_normal((n, *self.shape), np.float32)


def export(
    workdir: str | Path,
    output: str | Path,
    file_format: str,
    *,
    checkpoint: str = "last",
    branches: bool = False,
    preprocess: bool = False,
    int8: bool = False,
    measure: bool = False,
    data_dir: str | None = None,
    licence: str = "",
) -> dict[str, Any]:
    """Writes a run's network to a file, reads it back and compares its outputs.

    Args:
      workdir: a run directory; of a mutual run, the first network is taken.
      output: the file to write, of 'hub' the folder; it must not exist.
      file_format: a key of `FORMATS`.
      checkpoint: 'last' or 'best'.
      branches: whether the file contains the auxiliary classifiers.
      preprocess: whether the file maps uint8 images to probabilities; for 'stablehlo' and 'onnx'.
      int8: whether to quantise the network, see `quantising.quantise`; for 'onnx'.
      measure: whether to measure the file on the run's test images, see `model_files.measure`. Data that is not there
        is a note, and the file is not measured.
      data_dir: folder of the run's data, if it has moved; None for the run's.
      licence: of the weights, for the card of 'hub'.

    Returns:
      'format', 'arch', 'dtype' (that it computes in), 'bytes' (of the network's file), 'parameters', 'multiply_adds'
      (for one image), 'greatest_difference' (of any output, absolute, before quantisation) and 'greatest_output'. And
      'measured': a list of `model_files.Measured`, with int8 of the float32 file too; empty without measurements.

    Raises:
      UserError: not a run, or a file that exists or can't be written. Or a format that does not fit the options or
        whose package is missing, missing training images for `int8`, or a difference above `TOLERANCE`. No file is
        left behind then.
    """
    path = expand(output)
    _check_options(file_format, branches=branches, preprocess=preprocess, int8=int8, licence=licence)
    if path.exists():
        raise UserError(f"{path} exists: name another --output")
    if others := [one for one, ending in ENDINGS.items() if one != file_format and path.suffix == ending]:
        raise UserError(f"{path} has the name of a file of {others[0]}: set --format={others[0]}, or another --output")
    check_folder(path)
    exported = _restore(workdir, file_format, checkpoint, branches, preprocess)
    batches = None
    if int8:  # before the test images, whose absence is only a note
        check_named(Path(workdir), exported.config, data_dir)
        batches = list(quantising.calibration_images(exported.config, data_dir))
    test = _test_images(exported.config, Path(workdir), data_dir) if measure else None
    try:
        # Next to the output: renaming the file makes it the output.
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            folder = Path(scratch, "export")
            folder.mkdir()
            file = folder / (torch_files.WEIGHTS if file_format == "hub" else f"float32{ENDINGS[file_format]}")
            difference, greatest = _write(
                exported, FORMATS[file_format][0], file, f"the {file_format} file of {workdir}"
            )
            files = {torch_files.WEIGHTS if file_format == "hub" else path.name: file}
            if batches is not None:
                quantised = folder / "int8.onnx"
                quantising.quantise(file, quantised, iter(batches), model_files.inputs_of(exported.config, preprocess))
                files, file = {"float32, not kept": file, path.name: quantised}, quantised
            measured = _measure(exported, files, test, workdir)
            if file_format == "hub":
                hub.describe(folder, exported.network, workdir, checkpoint, licence, measured)
            size = file.stat().st_size
            os.replace(folder if file_format == "hub" else file, path)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}): {remedy(error)}") from error
    return {
        "format": file_format,
        "arch": exported.arch,
        "dtype": "int8" if int8 else exported.config.network.dtype,
        "bytes": size,
        **profile.totals(exported.network, exported.shape),
        "greatest_difference": difference,
        "greatest_output": greatest,
        "measured": measured,
    }


def _check_options(file_format: str, *, branches: bool, preprocess: bool, int8: bool, licence: str) -> None:
    if file_format not in FORMATS:
        raise UserError(f"unknown format {file_format!r}: choose {', '.join(FORMATS)}")
    if preprocess and not FORMATS[file_format][1]:
        raise UserError(f"{file_format} holds weights only: set --preprocess with stablehlo or onnx")
    if preprocess and branches:
        raise UserError("--preprocess makes the outputs probabilities of classes: leave out --with-branches")
    if int8 and file_format != "onnx":
        raise UserError(f"--int8 quantises ONNX files: set --format=onnx, not {file_format}")
    if int8 and branches:
        raise UserError("--int8 quantises the network that is deployed: leave out --with-branches")
    if branches and file_format == "hub":
        raise UserError("a folder for the Hub has the network that is deployed: leave out --with-branches")
    if licence and file_format != "hub":
        raise UserError("--license is for the model card: set --format=hub")


def _restore(workdir: str | Path, file_format: str, checkpoint: str, branches: bool, preprocess: bool) -> Export:
    config = RunDirectory(workdir).config()
    if file_format == "onnx":  # ONNX runtimes have no convolution in bfloat16 on CPU
        config = structs.replace(config, network=structs.replace(config.network, dtype="float32"))
    if peers := config.network.peers:
        note(f"{workdir} contains {len(peers)} networks: the first one is exported")
    network, variables = restore(workdir, checkpoint, config.network.dtype)
    if branches and not network.branches:
        raise UserError(f"{workdir} has no branches: leave out --with-branches")
    network = network.clone(branches=branches)
    variables = variables if branches else without_branches(variables)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
        raise UserError(f"the {checkpoint} checkpoint of {workdir} has numbers that are not finite: choose another one")
    return Export(config.network.arch, network, variables, config, preprocess)


def _test_images(config: Config, run: Path, data_dir: str | None) -> Dataset | Photos | None:
    """The run's test images; None, and a note, where they are not there, or would have to be prepared first."""
    try:
        check_named(run, config, data_dir)
        source = config.data if data_dir is None else structs.replace(config.data, dir=data_dir)
        if source.name is not None and not datasets.is_prepared_source(source):
            moved = [] if data_dir is None else [f"--data_dir={data_dir}"]
            command = shlex.join(["python", "-m", "hsakd_jax.evaluate", f"--workdir={run}", *moved])
            raise UserError(f"its data {source.name} is not prepared: `{command}` does it")
        return load_test(run, config, data_dir)
    except UserError as error:
        note(f"not measured: {error}")
        return None


def _measure(
    exported: Export, files: dict[str, Path], test: Dataset | Photos | None, workdir: str | Path
) -> list[model_files.Measured]:
    """The measured files; fewer, and a note, where a test image can't be read: the files are right without it."""
    measured: list[model_files.Measured] = []
    if test is None:
        return measured
    for label, file in files.items():
        program = model_files.open_program(file, exported.config, Path(workdir))
        try:
            measured.append(model_files.measure(program, file, exported.config, test, label))
        except UnreadableImageError as error:
            note(f"not measured: {error}")
            break
    return measured


def _write(exported: Export, write: Callable[[Export, Path], Run], path: Path, what: str) -> tuple[float, float]:
    """Writes a file and compares it with the network; (greatest difference, greatest output)."""
    # Accelerators round more by default, each in its way.
    with jax.default_device("cpu"):
        difference, greatest = compare(exported, write(exported, path))
    if not np.isfinite(greatest):
        raise UserError(f"the outputs of {what} are not finite: choose another checkpoint")
    if not difference <= TOLERANCE * greatest:
        raise UserError(
            f"{what} differs by {difference:.1e} from the network (outputs up to {greatest:.1e}): it was not kept; "
            "please report it"
        )
    return difference, greatest


def compare(exported: Export, run: Run) -> tuple[float, float]:
    """(greatest difference, greatest output) over batches of two sizes."""
    difference = greatest = 0.0
    for n in (1, 3):
        images = exported.images(n)
        for ours, theirs in zip(exported.apply(exported.variables, images), run(images), strict=True):
            # NumPy's maximum keeps a NaN, Python's may lose it.
            difference = float(np.maximum(difference, np.abs(np.asarray(ours) - theirs).max()))
            greatest = float(np.maximum(greatest, np.abs(ours).max()))
    return difference, greatest


def _reread(exported: Export, path: Path) -> Run:
    """The written weights in our own network, after a check that the bits are the same."""
    variables = torch_weights.load_torch(path, exported.arch)
    for ours, theirs in zip(jax.tree.leaves(exported.variables), jax.tree.leaves(variables), strict=True):
        if not np.array_equal(ours, theirs):
            raise UserError(f"{path} does not hold the weights that were written: check the disk")

    return lambda images: exported.apply(variables, images)


def _torch(exported: Export, path: Path) -> Run:
    # First the errors that no package fixes.
    tensors = torch_weights.to_state_dict(exported.arch, exported.network, exported.variables)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"the format torch needs PyTorch: {install('torch')}, or choose safetensors") from error
    content = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, content)
    path.write_bytes(content.getvalue())
    return _reread(exported, path)


def _safetensors(exported: Export, path: Path) -> Run:
    import safetensors.numpy

    tensors = torch_weights.to_state_dict(exported.arch, exported.network, exported.variables)
    record = record_of(exported.config)
    if record is None:
        note(f"the weights contain no settings for `convert`: {WITHOUT_RECORD}")
    metadata = {"format": "pt"} | ({torch_files.RECORD: msgspec.json.encode(record).decode()} if record else {})
    path.write_bytes(safetensors.numpy.save(tensors, metadata=metadata))
    return _reread(exported, path)


def _stablehlo(exported: Export, path: Path) -> Run:
    from jax import export as jax_export

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *exported.shape), exported.dtype)
    path.write_bytes(jax_export.export(jax.jit(exported.infer), platforms=("cpu", "cuda", "tpu"))(images).serialize())
    return jax_export.deserialize(bytearray(path.read_bytes())).call


def _onnx(exported: Export, path: Path) -> Run:
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"the format onnx needs {error.name}: {INSTALL_ONNX}") from error
    # onnxruntime joins a bias to the convolution before it, but not a whole BatchNorm.
    folded = Folded(exported.network)
    variables = jax.device_get(folded.fold(exported.variables, jax.ShapeDtypeStruct((1, *exported.shape), jnp.float32)))
    inputs = [jax.ShapeDtypeStruct(("batch", *exported.shape), exported.dtype)]
    try:
        infer = partial(exported.program(folded), variables)
        model = jax2onnx.to_onnx(infer, inputs=inputs, model_name=exported.arch)
        path.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # untranslatable networks raise errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"jax2onnx can't translate {exported.arch} ({reason}): choose stablehlo") from error
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})


# How a file is written and read back, and whether it holds the computation too.
FORMATS: dict[str, tuple[Callable[[Export, Path], Run], bool]] = {
    "torch": (_torch, False),
    "safetensors": (_safetensors, False),
    "stablehlo": (_stablehlo, True),
    "onnx": (_onnx, True),
    "hub": (_safetensors, False),
}
ENDINGS = {"torch": ".pth", "safetensors": ".safetensors", "stablehlo": ".stablehlo", "onnx": ".onnx"}
