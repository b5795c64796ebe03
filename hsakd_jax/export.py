"""Writes a trained network to a file for other software, reads it back and compares.

    python -m hsakd_jax.export --workdir=RUN --format=FORMAT --output=FILE [--checkpoint=last|best]
        [--with-branches] [--preprocess] [--int8] [--measure=False] [--data_dir=DIR] [--license=NAME]

FORMAT is one of
    torch        a state dict with the keys of the reference's PyTorch network
    safetensors  the same, with the settings of the run, which convert reads
    stablehlo    the whole network by jax.export, for CPU, CUDA and TPU, any batch size; images are [B, H, W, C]
    onnx         the whole network for ONNX runtimes, any batch size; images are [B, H, W, C]
    hub          a folder for the Hugging Face Hub: safetensors, config, labels, preprocessing and a model card

The file has auxiliary classifiers only with --with-branches. A stablehlo or onnx file maps (x / 255 - mean) / std to
logits, and with --preprocess uint8 images to probabilities. With --int8 an onnx file computes in int8, calibrated on
training images of the run.

The command ends with a table of size, accuracy on the run's test images and speed, each file in its own runtime;
--measure=False omits it. --data_dir sets the folder of the data, if it has moved. --license sets the licence of the
weights in the card of a hub folder.
"""

from absl import flags

from hsakd_jax.cli import Command, start


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("workdir", "", "the run.", values)
    flags.DEFINE_string("format", "", "torch, safetensors, stablehlo, onnx or hub.", values)
    flags.DEFINE_string("output", "", "the file to write, of hub the folder.", values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint.", values)
    flags.DEFINE_bool("with_branches", False, "with the auxiliary classifiers.", values)
    flags.DEFINE_bool("preprocess", False, "uint8 in, probabilities out.", values)
    flags.DEFINE_bool("int8", False, "quantised to int8; for onnx.", values)
    flags.DEFINE_bool("measure", True, "measure the file on the run's test images.", values)
    flags.DEFINE_string("data_dir", None, "folder of the data, if not where the run found it.", values)
    flags.DEFINE_string("license", "", "licence of the weights, such as cc-by-4.0; for hub.", values)


def main(values: flags.FlagValues) -> None:
    """Exports."""
    from hsakd_jax.core.console import show
    from hsakd_jax.interop import exporters, model_files
    from hsakd_jax.runs.directory import RunDirectory

    report = exporters.export(
        values.workdir,
        values.output,
        values.format,
        checkpoint=values.checkpoint,
        branches=values.with_branches,
        preprocess=values.preprocess,
        int8=values.int8,
        measure=values.measure,
        data_dir=values.data_dir,
        licence=values.license,
    )
    before = " before quantisation" if values.int8 else ""
    show(
        f"{values.output}: {report['arch']} in {report['dtype']}, {report['bytes'] / 1e6:.2f} MB, "
        f"{report['parameters']:,} parameters, {report['multiply_adds']:,} multiply-adds; read back, its "
        f"outputs{before} differ by at most {report['greatest_difference']:.1e} "
        f"(they reach {report['greatest_output']:.3g})"
    )
    if report["measured"]:
        classes = RunDirectory(values.workdir).config().network.num_classes
        show("\n" + model_files.as_table(report["measured"], classes))


COMMAND = Command(main, __doc__, define_flags, required=("workdir", "format", "output"))

if __name__ == "__main__":
    start(COMMAND)
