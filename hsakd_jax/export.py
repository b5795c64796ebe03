"""Writes a trained network to a file for other software, reads it back and compares.

    python -m hsakd_jax.export --workdir=RUN --format=FORMAT --output=FILE [--checkpoint=last|best]
        [--with-branches] [--preprocess]

FORMAT is one of
    torch        a state dict with the keys of the reference's PyTorch network
    safetensors  the same
    stablehlo    the whole network by jax.export, for CPU, CUDA and TPU, any batch size; images are [B, H, W, C]
    onnx         the whole network for ONNX runtimes, any batch size; images are [B, H, W, C]

The auxiliary classifiers stay behind unless --with-branches. With --preprocess a stablehlo or onnx file takes
uint8 images and gives probabilities; without it takes (x / 255 - mean) / std and gives logits.
"""

from absl import flags

from hsakd_jax.cli import command

_WORKDIR = flags.DEFINE_string("workdir", "", "the run.")
_FORMAT = flags.DEFINE_string("format", "", "torch, safetensors, stablehlo or onnx.")
_OUTPUT = flags.DEFINE_string("output", "", "the file to write.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint.")
_BRANCHES = flags.DEFINE_bool("with_branches", False, "with the auxiliary classifiers.")
_PREPROCESS = flags.DEFINE_bool("preprocess", False, "uint8 in, probabilities out.")


def main() -> None:
    """Exports."""
    from hsakd_jax.interop import exporters

    report = exporters.export(
        _WORKDIR.value,
        _OUTPUT.value,
        _FORMAT.value,
        checkpoint=_CHECKPOINT.value,
        branches=_BRANCHES.value,
        preprocess=_PREPROCESS.value,
    )
    print(
        f"{_OUTPUT.value}: {report['arch']}, {report['bytes'] / 1e6:.2f} MB, {report['parameters']:,} parameters, "
        f"{report['multiply_adds']:,} multiply-adds; read back, its outputs differ by at most "
        f"{report['greatest_difference']:.1e} (they reach {report['greatest_output']:.3g})"
    )


if __name__ == "__main__":
    command(main, __doc__, "workdir", "format", "output")
