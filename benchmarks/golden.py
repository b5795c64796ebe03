"""Golden figures of the reference on this device: HSAKD's first step and its networks, in three precisions.

    python -m benchmarks.golden [--pair wrn_40_2:wrn_16_2 ...] [--output NAME]

For each pair, the outputs of both networks, and the loss terms and the gradient's norm of the first step, are compared
with those that the authors' PyTorch code computed in float64 (tests/golden). The precisions:

float32   products with all bits of float32 (JAX_DEFAULT_MATMUL_PRECISION=float32)
default   float32 as a run computes it: some devices round the factors of a product, to TF32 or bfloat16
bfloat16  --config.student.dtype=bfloat16

Errors are relative: of an output to the greatest output, of a term to the term. A table has the greatest error of each
kind and its tolerance. The exit status is 1 if an error exceeds its tolerance. --output also writes it and JSON to
benchmarks/results/NAME.
"""

import contextlib
import sys
from pathlib import Path

from hsakd_jax.core import runtime

runtime.configure_runtime()
runtime.configure_compilation()

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import Parser, file_name
from benchmarks.step import save
from hsakd_jax.distillation import objectives
from hsakd_jax.models.rotations import rotate
from hsakd_jax.runs import provenance
from hsakd_jax.training import optim
from hsakd_jax.training.step import Batch, TrainStep

# Not `from tests import`: a package with this name, which another project may have installed, would come first.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import reference

PAIRS = ("resnet56:resnet20", "wrn_40_2:wrn_16_2")
# Of each precision: dtype of the networks, precision of products, tolerance of each kind of figure. The tests have
# those of float32. TF32 stores 11 bits and bfloat16 8: a rounding changes a value by up to 0.05 % and 0.4 %, and the
# tolerances are some five to ten roundings. A CPU's errors in bfloat16 are a tenth of that.
PRECISIONS = {
    "float32": ("float32", "float32", {"outputs": 1e-5, "task, loss": 1e-5, "KL terms": 1e-4, "grad_norm": 1e-3}),
    "default": ("float32", None, dict.fromkeys(("outputs", "task, loss", "KL terms", "grad_norm"), 5e-3)),
    "bfloat16": ("bfloat16", None, dict.fromkeys(("outputs", "task, loss", "KL terms", "grad_norm"), 2e-2)),
}


def greatest(errors: Iterable[float]) -> float:
    """The greatest error; NaN if one is NaN, which Python's `max` may pass over."""
    return float(np.max(np.array(list(errors), np.float64)))


def output_error(name: str, dtype: str) -> float:
    """The greatest error of a network's logits and auxiliary logits in inference."""
    arch, network = reference.create(name, dtype=dtype)
    expected = np.load(reference.GOLDEN / "outputs.npz")
    images, _ = reference.inputs("input", 2, arch["resolution"], arch["num_classes"])
    outputs = jax.jit(network.apply)(reference.variables(arch, dtype=np.float32), images.astype(np.float32))
    found = {"logits": outputs.logits, **{f"aux_{l}": q for l, q in enumerate(outputs.aux_logits, 1)}}
    golden = {key: expected[f"{name}/{key}"] for key in found}
    return greatest(abs(found[key] - golden[key]).max() / abs(golden[key]).max() for key in found)


def step_errors(teacher_name: str, student_name: str, dtype: str) -> dict[str, float]:
    """The greatest error of each kind of figure in the first step of HSAKD's student."""
    record = reference.read("steps.json")["steps"][f"student/{student_name}<-{teacher_name}"]
    arch, network = reference.create(student_name, dtype=dtype)
    teacher_arch, teacher = reference.create(teacher_name, dtype=dtype)
    variables, taught = (reference.variables(a, dtype=np.float32) for a in (arch, teacher_arch))
    shape = record["batch"], record["resolution"], record["num_classes"]
    images, labels = reference.inputs(f"student/{student_name}/0", *shape)
    weights = dict.fromkeys(("task", "kl_aux", "kl_final"), 1.0)
    optimizer = optim.sgd(record["lr"], record["momentum"], record["weight_decay"], record["nesterov"])
    step = TrainStep(network, objectives.student, weights, optimizer, True, teacher)
    batch = Batch(rotate(jnp.asarray(images, jnp.float32)), jnp.asarray(labels))
    sums = jax.jit(step)(step.init(variables), taught, batch).metrics.sums
    errors = {name: abs(float(sums[name]) - value) / value for name, value in record["log"][0].items()}
    return {
        "task, loss": greatest((errors["task"], errors["loss"])),
        "KL terms": greatest((errors["kl_aux"], errors["kl_final"])),
        "grad_norm": errors["grad_norm"],
    }


def compare(pair: str, precision: str) -> dict[str, float]:
    """The greatest error of each kind."""
    dtype, products, _ = PRECISIONS[precision]
    teacher, student = (f"{name}_aux" for name in pair.split(":"))
    with jax.default_matmul_precision(products) if products else contextlib.nullcontext():
        errors = step_errors(teacher, student, dtype)
        return errors | {"outputs": greatest(output_error(name, dtype) for name in (teacher, student))}


def main() -> int:
    """Compares and prints; the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--pair", action="append", choices=PAIRS, help="both by default; may be given twice")
    parser.add_argument("--output", type=file_name, help="name of the files in benchmarks/results/")
    args = parser.parse_args()
    environment = provenance.environment()
    lines = [
        f"{environment['device']}, jax {jax.__version__}",
        "",
        "| pair | precision | figures | greatest relative error | tolerance | |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    results, failures = [], 0
    for pair in args.pair or PAIRS:
        for precision, (_, _, tolerances) in PRECISIONS.items():
            errors = compare(pair, precision)
            results.append({"pair": pair, "precision": precision, "errors": errors})
            for figures, error in errors.items():
                passed = error <= tolerances[figures]
                failures += not passed
                verdict = "" if passed else "**outside**"
                lines.append(
                    f"| {pair} | {precision} | {figures} | {error:.1e} | {tolerances[figures]:.0e} | {verdict} |"
                )
                print(lines[-1], flush=True)
            count = sum(len(result["errors"]) for result in results)
            total = f"{count} comparisons, {failures} outside their tolerance"
            if args.output:
                save("golden", args.output, {"environment": environment, "results": results}, [*lines, "", total])
    print(f"\n{total}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
