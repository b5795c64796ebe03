"""Post-training quantisation of ONNX files to int8."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import structs

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.extras import INSTALL_ONNX
from hsakd_jax.data import datasets
from hsakd_jax.data.sampling import stratified
from hsakd_jax.evaluation.accuracy import batches_of, data_folder
from hsakd_jax.runs.config import Config, RunConfig

IMAGES, BATCH = 512, 64  # of the calibration
# Operations that compute in int8. The normalisation in front and the softmax behind it stay in float32.
OPERATIONS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Sigmoid", "Concat", "Split", "Slice"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Pad", "Reshape", "Transpose", "Squeeze", "Flatten"),
)


def calibration_images(config: Config, data_dir: str | None = None) -> Iterator[np.ndarray]:
    """Batches of training images of a run, as they are stored, without crops: the same fraction of each class.

    Args:
      config: of the run.
      data_dir: folder of the data, if it has moved; None for the run's.

    Yields:
      uint8 [BATCH, H, W, C], about `IMAGES` images, at least one of each class; the last batch may be smaller.

    Raises:
      UserError: data that is not there.
    """
    seed = config.seed if isinstance(config, RunConfig) else 0
    try:
        where = data_folder(config, data_dir, "they")
        train = datasets.load_source(structs.replace(config.data, dir=where), splits=("train",), seed=seed).train
    except UserError as error:
        raise UserError(f"int8 needs training images for its calibration: {error}") from error
    chosen = train.take(stratified(train.labels, min(1.0, IMAGES / len(train.labels)), seed))
    for rows in batches_of(config, chosen, BATCH):
        yield rows["image"][rows["mask"]]


def quantise(source: Path, path: Path, batches: Iterator[np.ndarray], make_inputs: Callable[[np.ndarray], np.ndarray]):
    """Writes an int8 copy of an ONNX file: static quantisation in QDQ form, per channel.

    Weights are symmetric int8 with a scale for each output channel. Activations are uint8 with one scale and zero point
    for each tensor, from its least and greatest value over the calibration images. onnxruntime computes int8
    activations in float32 where two layers read them. Weights have 7 of their 8 bits: x86 processors without VNNI add
    two products in 16 bits, which overflow otherwise.

    Args:
      source: the float32 file.
      path: the file to write.
      batches: uint8 images for the calibration.
      make_inputs: from these to inputs of the network.

    Raises:
      UserError: onnxruntime's quantisation can't be imported, or can't quantise the network.
    """
    try:
        from onnxruntime import quantization  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--int8 needs {error.name}: {INSTALL_ONNX}") from error
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    name = onnxruntime.InferenceSession(source.read_bytes(), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    inputs = ({name: make_inputs(images)} for images in batches)
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(inputs, None)})()
    with TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        try:
            # Computes each BatchNorm in the convolution before it, and drops transpositions that cancel out.
            quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                path,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(OPERATIONS),
                nodes_to_exclude=_before_convolutions(onnx.load(prepared).graph),
                per_channel=True,
                reduce_range=True,  # of the weights
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except (OSError, UserError):
            raise
        except Exception as error:  # networks that it can't quantise raise errors of many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"onnxruntime can't quantise the network ({reason}): leave out --int8") from error


def _before_convolutions(graph: Any) -> list[str]:
    """Names of the nodes before the first convolution: the normalisation."""
    behind: set[str] = set()  # tensors that a convolution decides
    names: list[str] = []
    for node in graph.node:  # in the order of computation
        if node.op_type == "Conv" or behind.intersection(node.input):
            behind.update(node.output)
        else:
            names.append(node.name)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice on how to quantise, which it logs by Python's root logger."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
