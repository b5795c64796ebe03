"""Compares each method with the figures of its authors' code, in float64.

    python -m tests.golden.methods [--golden DIR]

DIR contains methods.json and methods.npz, by default this folder. `Golden.draw` makes inputs and parameters.
One line per case has its worst relative error over values, gradients and arrays. The last line counts cases and
failures. The exit status is 1 where a case is outside its tolerance, or no function computes it.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from hsakd_jax.models.network import Outputs

FOLDER = Path(__file__).parent
Arrays = Mapping[str, Any]
# Computes a case: of the figures, the case and its inputs and parameters, the terms and the further arrays by name.
Compute = Callable[["Golden", dict[str, Any], Arrays], tuple[dict[str, Any], dict[str, Any]]]


class Golden:
    """The figures of a folder.

    Args:
      folder: with methods.json and methods.npz.
    """

    def __init__(self, folder: Path = FOLDER):
        found = json.loads((folder / "methods.json").read_text())
        self.cases = {case["name"]: case for case in found["cases"]}
        self.tolerance: float = found["tolerance"]
        self._salt = found["salt"]
        self._figures = np.load(folder / "methods.npz")

    def array(self, name: str) -> np.ndarray:
        """A figure of methods.npz."""
        return self._figures[name]

    def has(self, name: str) -> bool:
        """Whether methods.npz contains a figure."""
        return name in self._figures

    def rng(self, tag: str) -> np.random.Generator:
        """The generator of a tag."""
        return np.random.default_rng(zlib.crc32(f"{self._salt}/{tag}".encode()))

    def draw(self, spec: Mapping[str, Any], index: np.ndarray | None = None) -> np.ndarray:
        """An input or a parameter, drawn by its kind; `index` is that of the step, for negatives."""
        kind, shape, g = spec["kind"], spec["shape"], self.rng(spec["tag"])
        match kind:
            case "labels":
                return g.integers(0, 10, 12)
            case "normal":
                return g.standard_normal(shape)
            case "relu":
                return np.maximum(g.standard_normal(shape), 0)
            case "positive":
                return np.abs(g.standard_normal(shape))
            case "logits":
                return 3 * g.standard_normal(shape)
            case "teacher_logits" | "edge_logits":
                logits = 3 * g.standard_normal(shape)
                labels = np.repeat(self.rng("labels").integers(0, 10, 12), shape[0] // 12)
                rows = np.arange(0, shape[0], 2)
                logits[rows, labels[rows]] += 5
                if kind == "edge_logits":
                    logits[0, labels[0]] = logits[0].min() - 1
                    logits[1, labels[1]] = logits[1].max() + 1
                    logits[2, (labels[2] + 1) % 10] = logits[2, labels[2]]
                return logits
            case "rotated":
                of_image = g.standard_normal((12, 1, shape[1]))
                return (of_image + g.standard_normal((12, 4, shape[1]))).reshape(48, shape[1])
            case "kernel":
                return g.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
            case "bias":
                return 0.1 * g.standard_normal(shape)
            case "scale":
                return g.uniform(0.5, 1.5, shape)
            case "log_scale":
                return np.log(np.expm1(5 - 1e-5)) + g.uniform(-2, 0.5, shape)
            case "bank":
                bound = np.sqrt(3 / shape[1])
                return g.uniform(-bound, bound, shape)
            case "cost":
                a = g.uniform(0.2, 1, shape)
                cost = (a + a.T) / 2
                np.fill_diagonal(cost, 0)
                return cost
            case "classes":
                return g.integers(0, 10, 64)
            case "index":
                return g.permutation(64)[:12]
            case "negatives":
                classes = self.rng("crd/classes").integers(0, 10, 64)
                return np.stack([g.choice(np.flatnonzero(classes != classes[i]), 40) for i in index])
        raise ValueError(f"unknown kind {kind!r}")

    def arrays(self, case: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs and parameters of a case, by name."""
        found: dict[str, np.ndarray] = {}
        for name, spec in {**case["inputs"], **case.get("parameters", {})}.items():
            found[name] = self.draw(spec, found.get("index"))
        return found


def table() -> dict[str, Compute]:
    """The function that computes a case, by the part of the case's name in front of '/'."""
    from . import cases_features, cases_logits, cases_relations

    return {**cases_logits.CASES, **cases_features.CASES, **cases_relations.CASES}


def nested(arrays: Arrays, case: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a case as a tree: 'conv/kernel' is in 'conv'."""
    return unflatten_dict({name: arrays[name] for name in case.get("parameters", {})}, sep="/")


def outputs(arrays: Arrays, network: str) -> Outputs:
    """The outputs of 'student' or 'teacher' that a case has."""
    maps = tuple(arrays[name] for name in sorted(arrays) if name.startswith(f"{network}_feature"))
    logits, embedding = (arrays.get(f"{network}_{name}") for name in ("logits", "embedding"))
    return Outputs(logits, (), maps, embedding, hints=maps, preactivations=maps)


def errors(golden: Golden, case: dict[str, Any], compute: Compute) -> dict[str, float]:
    """The relative error of each value, gradient and array: greatest difference over greatest absolute figure.

    A gradient that the figures do not have must be 0, relative to the greatest gradient of its term. Inputs without a
    gradient, except the student's, are constants, as a train step has them.
    """
    arrays = golden.arrays(case)
    learned = {*case.get("parameters", {}), *(name for names in case["gradients"].values() for name in names)}
    learned |= {name for name in case["inputs"] if name.startswith("student")}
    floating = {name: jnp.asarray(x) for name, x in arrays.items() if name in learned and x.dtype == np.float64}
    fixed = {name: x if x.dtype != np.float64 else jnp.asarray(x) for name, x in arrays.items() if name not in floating}

    terms, pull, extras = jax.vjp(lambda learned: compute(golden, case, {**fixed, **learned}), floating, has_aux=True)
    found = {name: _error(terms[name], value) for name, value in case["values"].items()}
    for term, names in case["gradients"].items():
        unit = {name: jnp.ones_like(x) if name == term else jnp.zeros_like(x) for name, x in terms.items()}
        (gradients,) = pull(unit)
        key = f"{case['name']}/{term}/grad/"
        greatest = max(abs(golden.array(key + name)).max() for name in names)
        for name, gradient in gradients.items():
            stored = name in names and golden.has(key + name)
            expected = golden.array(key + name) if stored else np.zeros(gradient.shape)
            found[f"{term} by {name}"] = _error(gradient, expected, None if stored else greatest)
    for name in case.get("arrays", ()):
        found[name] = _error(extras[name], golden.array(f"{case['name']}/{name}"))
    return found


def _error(ours: Any, expected: Any, greatest: float | None = None) -> float:
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(abs(ours - expected).max() / (greatest or abs(expected).max()))


def main() -> int:
    """Compares all cases; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.golden.methods")
    parser.add_argument("--golden", type=Path, default=FOLDER)
    golden, known = Golden(parser.parse_args().golden), table()
    worst, failures = 0.0, 0
    for name, case in golden.cases.items():
        compute = known.get(name.partition("/")[0])
        if compute is None:
            failures += 1
            print(f"{name}: no function computes it")
            continue
        found = errors(golden, case, compute)
        where, error = max(found.items(), key=lambda item: item[1])
        tolerance = case.get("tolerance", golden.tolerance)
        worst = max(worst, error)
        failures += error > tolerance
        print(f"{name}: {error:.1e} ({where}){'' if error <= tolerance else f', above {tolerance:.0e}'}", flush=True)
    print(f"{len(golden.cases)} cases, worst error {worst:.1e}, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    sys.exit(main())
