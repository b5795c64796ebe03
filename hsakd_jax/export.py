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

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", "", "the run.", values)
    flags.DEFINE_string("format", "", "torch, safetensors, stablehlo or onnx.", values)
    flags.DEFINE_string("output", "", "the file to write.", values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint.", values)
    flags.DEFINE_bool("with_branches", False, "with the auxiliary classifiers.", values)
    flags.DEFINE_bool("preprocess", False, "uint8 in, probabilities out.", values)


def main(values: flags.FlagValues) -> None:
    """Exports."""
    from hsakd_jax.core.console import show
    from hsakd_jax.interop import exporters

    report = exporters.export(
        values.workdir,
        values.output,
        values.format,
        checkpoint=values.checkpoint,
        branches=values.with_branches,
        preprocess=values.preprocess,
    )
    show(
        f"{values.output}: {report['arch']} in {report['dtype']}, {report['bytes'] / 1e6:.2f} MB, "
        f"{report['parameters']:,} parameters, {report['multiply_adds']:,} multiply-adds; read back, its outputs "
        f"differ by at most {report['greatest_difference']:.1e} (they reach {report['greatest_output']:.3g})"
    )


COMMAND = Command(main, __doc__, define_flags, required=("workdir", "format", "output"))

if __name__ == "__main__":
    start(COMMAND)
