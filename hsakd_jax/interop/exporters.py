"""A trained network leaves for other software; each file is read back and compared before it is kept."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsakd_jax.core.console import note
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import check_folder, expand
from hsakd_jax.data.augment import normalise
from hsakd_jax.interop import torch_weights
from hsakd_jax.models import profile
from hsakd_jax.runs.config import Config
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import restore, without_branches

# What float32 arithmetic in another order may change, relative to the greatest output.
TOLERANCE = 1e-4
# Takes NumPy images, gives the outputs in a sequence.
Run = Callable[[np.ndarray], Any]


class Export:
    """What is exported: a network, its variables and what its images are.

    Attributes:
      infer: images -> (logits, aux logits of each branch ...); with preprocessing uint8 images -> (probabilities,).
      apply: the same of (variables, images).
      images: `images(n)` makes n NHWC images such as `infer` takes.
    """

    def __init__(self, arch: str, network: Any, variables: Any, config: Config, preprocess: bool):
        network = network.clone(for_export=True)
        self.arch, self.network, self.variables = arch, network, variables
        self.shape = config.network.image_shape
        self.dtype = jnp.uint8 if preprocess else jnp.float32
        normal = config.data.mean, config.data.std

        def apply(variables, images):
            if preprocess:
                return (jax.nn.softmax(network.apply(variables, normalise(images, *normal)).logits),)
            outputs = network.apply(variables, images)
            return (outputs.logits, *outputs.aux_logits)

        self.apply = jax.jit(apply)
        self.infer = partial(apply, self.variables)

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
) -> dict[str, Any]:
    """Writes a run's network to a file, reads it back and compares its outputs.

    Args:
      workdir: a run directory; of a mutual run, the first network is taken.
      output: the file to write; it must not exist.
      file_format: a key of `FORMATS`.
      checkpoint: 'last' or 'best'.
      branches: whether the auxiliary classifiers go with it.
      preprocess: whether the file takes uint8 images and gives probabilities; for 'stablehlo' and 'onnx'.

    Returns:
      'format', 'arch', 'dtype' (that it computes in), 'bytes', 'parameters', 'multiply_adds' (for one image),
      'greatest_difference' (of any output, absolute) and 'greatest_output'.

    Raises:
      UserError: not a run, a file that exists or can't be written, a format that does not go with the options or
        whose package is missing, or a difference above `TOLERANCE`. No file is left behind then.
    """
    path = expand(output)
    if file_format not in FORMATS:
        raise UserError(f"unknown format {file_format!r}: choose {', '.join(FORMATS)}")
    write, whole_program = FORMATS[file_format]
    if preprocess and not whole_program:
        raise UserError(f"{file_format} holds weights only: give --preprocess with stablehlo or onnx")
    if preprocess and branches:
        raise UserError("--preprocess gives probabilities of classes: leave out --with-branches")
    if path.exists():
        raise UserError(f"{path} exists: name another --output")
    check_folder(path)
    config = RunDirectory(workdir).config()
    # ONNX runtimes have no convolution in bfloat16 on CPU.
    dtype = "float32" if file_format == "onnx" else config.network.dtype
    if peers := config.network.peers:
        note(f"{workdir} contains {len(peers)} networks: the first one is exported")
    network, variables = restore(workdir, checkpoint, dtype)
    if branches and not network.branches:
        raise UserError(f"{workdir} has no branches: leave out --with-branches")
    network = network.clone(branches=branches)
    variables = variables if branches else without_branches(variables)
    arch = config.network.arch
    exported = Export(arch, network, variables, config, preprocess)
    difference, greatest = _write(exported, write, path, f"the {file_format} file of {workdir}")
    return {
        "format": file_format,
        "arch": arch,
        "dtype": dtype,
        "bytes": path.stat().st_size,
        **profile.totals(network, exported.shape),
        "greatest_difference": difference,
        "greatest_output": greatest,
    }


def _write(exported: Export, write: Callable[[Export, Path], Run], path: Path, what: str) -> tuple[float, float]:
    """Writes a draft, compares it with the network, and gives it its name; (greatest difference, greatest output)."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        # Accelerators round more by default, each in its way.
        with jax.default_device("cpu"):
            difference, greatest = compare(exported, write(exported, draft))
        if not np.isfinite(greatest):
            raise UserError(f"the outputs of {what} are not finite: choose another checkpoint")
        if not difference <= TOLERANCE * greatest:
            raise UserError(
                f"{what} differs by {difference:.1e} from the network (outputs up to {greatest:.1e}): it was not kept; "
                "please report it"
            )
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"can't write {path} ({error.strerror or error}): free some space or name another") from error
    finally:
        with suppress(OSError):
            draft.unlink()
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
    """The written weights in our own network, after a look that they are the same bits."""
    variables = torch_weights.load_torch(path, exported.arch)
    for ours, theirs in zip(jax.tree.leaves(exported.variables), jax.tree.leaves(variables), strict=True):
        if not np.array_equal(ours, theirs):
            raise UserError(f"{path} does not hold the weights that were written: check the disk")

    return lambda images: exported.apply(variables, images)


def _torch(exported: Export, path: Path) -> Run:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "the format torch needs PyTorch: pip install 'hsakd_jax[torch]', or take safetensors"
        ) from error
    tensors = torch_weights.to_state_dict(exported.arch, exported.network, exported.variables)
    content = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, content)
    path.write_bytes(content.getvalue())
    return _reread(exported, path)


def _safetensors(exported: Export, path: Path) -> Run:
    import safetensors.numpy

    tensors = torch_weights.to_state_dict(exported.arch, exported.network, exported.variables)
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt", "arch": exported.arch}))
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
        raise UserError(f"the format onnx needs {error.name}: pip install 'hsakd_jax[onnx]'") from error
    inputs = [jax.ShapeDtypeStruct(("batch", *exported.shape), exported.dtype)]
    try:
        model = jax2onnx.to_onnx(exported.infer, inputs=inputs, model_name=exported.arch)
        path.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # what it can't translate is refused in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"jax2onnx can't translate {exported.arch} ({reason}): take stablehlo") from error
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})


# How a file is written and read back, and whether it holds the computation too.
FORMATS: dict[str, tuple[Callable[[Export, Path], Run], bool]] = {
    "torch": (_torch, False),
    "safetensors": (_safetensors, False),
    "stablehlo": (_stablehlo, True),
    "onnx": (_onnx, True),
}
