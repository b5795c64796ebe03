"""What each folder of the package may import: one row a folder, and no permission that nobody uses."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hsakd_jax"

# Other folders of the package, then packages. What no row has, nobody may import: TensorFlow and clu are on no machine
# that the package must run on.
MAY_IMPORT = {
    "core": ("", "jax msgspec numpy"),
    "models": ("core", "flax jax numpy"),
    "distillation": ("models", "flax jax msgspec optax"),
    "data": ("core", "PIL absl jax numpy sklearn tensorflow_datasets"),
    "runs": ("core models", "flax jax msgspec numpy orbax"),
    "evaluation": ("core data models runs", "jax msgspec numpy scipy"),
    "training": (
        "core data distillation evaluation models runs",
        "flax jax msgspec numpy optax tensorboardX trackio wandb",
    ),
    "experiments": ("core data distillation evaluation models runs training", "absl ml_collections msgspec"),
    "interop": (
        "core data evaluation models runs",
        "flax jax jax2onnx msgspec numpy onnx onnxruntime safetensors timm torch torchvision",
    ),
    "analysis": ("core evaluation experiments runs", "PIL jinja2 markupsafe matplotlib numpy"),
    # The public interface and the commands: flags in, one call out.
    "": ("analysis core evaluation experiments interop models runs training", "absl"),
    "configs": ("data experiments", ""),
}
COMMANDS = {"main", "evaluate", "results", "report", "summary", "predict", "export", "convert"}


def folder_of(path):
    """The folder that a file belongs to, '' for the package's root."""
    parts = path.relative_to(ROOT).parts
    return "configs" if "configs" in parts else parts[1] if len(parts) > 2 else ""


FILES = [path for folder in ("hsakd_jax", "configs") for path in (ROOT / folder).rglob("*.py")]


def imports(source, folder=None):
    """Folders and packages that the source imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            # `from hsakd_jax import create` names what the interface has; `from hsakd_jax import data` a folder.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in found]
    ours = {name[1] for name in parts if name[0] == "hsakd_jax" and (PACKAGE / name[1]).is_dir()}
    root = {"" for name in parts if name[0] == "hsakd_jax" and not (PACKAGE / name[1]).is_dir()}
    theirs = {name[0] for name in parts} - {"hsakd_jax"} - set(sys.stdlib_module_names)
    return (ours | root) - {folder}, theirs


def strangers(folder, source):
    """What a source of a folder imports and may not."""
    ours, theirs = imports(source, folder)
    may, packages = (set(words.split()) for words in MAY_IMPORT[folder])
    return (ours - may - ({""} if folder == "" else set())) | (theirs - packages)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_its_folder_may(path):
    assert not strangers(folder_of(path), path.read_text())


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_permission_is_used(folder):
    found = [imports(path.read_text(), folder) for path in FILES if folder_of(path) == folder]
    ours, theirs = (set().union(*parts) for parts in zip(*found, strict=True))
    may, packages = (set(words.split()) for words in MAY_IMPORT[folder])
    assert (may - ours, packages - theirs) == (set(), set())


def test_folders_have_an_order():
    folders = {folder: set(may.split()) for folder, (may, _) in MAY_IMPORT.items()}
    assert list(TopologicalSorter(folders).static_order())
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"} == folders.keys() - {""}
    assert len(folders.keys() - {"", "configs"}) <= 10


def test_the_root_holds_commands_only():
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS | {"__init__", "__main__", "cli"}


def test_tests_mirror_the_folders():
    assert {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} <= MAY_IMPORT.keys()


def test_the_page_for_contributors_has_the_same_table():
    rows = re.findall(r"^\| `(\w+)/` \| .+ \| (.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    found = {folder: words.replace(",", "").split() for folder, words in rows}
    assert found == {folder or "hsakd_jax": may.split() for folder, (may, _) in MAY_IMPORT.items()}


def test_a_forbidden_import_is_found():
    assert strangers("core", "import tensorflow as tf") == {"tensorflow"}
    assert strangers("models", "def f():\n    from hsakd_jax.data.augment import augment") == {"data"}
    assert strangers("data", "from hsakd_jax import restore") == {""}


def functions():
    """(where, definition, source lines) of every function of the package."""
    for path in FILES:
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node, source.splitlines()


def code_lines(node, lines):
    """Lines of a function that are neither empty nor a comment nor its docstring."""
    first = node.body[0]
    quoted = range(first.lineno, first.end_lineno + 1) if ast.get_docstring(node) else ()
    inside = (i for i in range(node.lineno, node.end_lineno + 1) if i not in quoted)
    return sum(bool(lines[i - 1].strip()) and not lines[i - 1].lstrip().startswith("#") for i in inside)


def test_no_function_is_longer_than_a_screen():
    assert [where for where, node, lines in functions() if code_lines(node, lines) > 60] == []


def test_no_function_returns_a_tuple_of_many():
    # JAX asks a derivative for one value per argument.
    found = {
        where
        for where, node, _ in functions()
        for inside in ast.walk(node)
        if isinstance(inside, ast.Return) and isinstance(inside.value, ast.Tuple) and len(inside.value.elts) > 3
    }
    assert found == {"hsakd_jax/models/layers.py:_normalise_backward"}


def test_only_the_console_prints():
    """It escapes control characters, and survives an output that is gone."""
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == {"core/console.py", "__main__.py"}
