"""The pages: every command on them is run, on tiny input, or read by the flags it would meet; and their site builds."""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from absl.flags import FlagValues
from conftest import ROOT, write_photographs
from test_processes import free_port

from hsakd_jax import cli, create
from hsakd_jax.__main__ import COMMANDS
from hsakd_jax.core.errors import UserError
from hsakd_jax.experiments import validate
from hsakd_jax.experiments.published import OURS
from hsakd_jax.experiments.recipes import RECIPES
from hsakd_jax.experiments.resolve import recipes_of, section_of
from hsakd_jax.interop.torch_weights import to_state_dict
from hsakd_jax.runs.restore import initialise

GENERATE = runpy.run_path(str(ROOT / "docs/generate.py"))
PAGES = {
    str(path.relative_to(ROOT)): GENERATE["PART"].sub(r"\1\3", path.read_text())
    for pattern in ("*.md", "docs/*.md", "results/*.md", "benchmarks/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {page: BLOCK.findall(text) for page, text in PAGES.items()}
# A block of Python that begins so goes to this file, and there to this dict; tests/test_contributing.py says how.
PLACE = re.compile(r"# (\S+\.py)(?:, in (\w+))?\n")

# What is run instead of what a page says.
SUBSTITUTIONS = [
    # .ci/run installs; here the package is there.
    (r"python3? -m venv .venv && (\.venv/bin/pip install -q -e \S+ && \.venv/bin/|\. \.venv/bin/activate)", ""),
    (r"pip install -e '\.\[\w+\]'", "true"),
    (r"pre-commit .*", "true"),
    # The suite within itself; the site has a test of its own.
    (r"(python -m )?pytest (-n 2|tests/\S+ -k .*)", "python -m pytest --version"),
    (r"sphinx-build .*", "true"),
    # Tiny forms, of small networks, on images that are there.
    (r"/resnet56/resnet20|(?<=teacher_frozen)/wrn_40_2", ""),
    (r"configs/imagenet\.py", "configs/imagenet.py:student/resnet8_half/resnet8_quarter"),
    (r"=imagenet\n", "=imagenet --config.data.image_size=32 --config.data.resize=36 --config.eval_batch=5"
     " --config.teacher.batch=8 --config.student.batch=8 --config.teacher.epochs=1 --config.student.epochs=1\n"),
    (r"(configs/(?:cifar100|digits)\.py)(?=\s)", r"\1:tiny"),
    (r"(configs/(?:cifar100|digits)\.py:(?!tiny)(?!\w+_tiny)\w+)", r"\1_tiny"),
    # A checkpoint of digits, which are 8x8 and grey.
    (r"(convert (?!--)\S+)", r"\1 --data=digits"),
    # A pretrained network of three channels, and photographs.
    (r"convert --torchvision=\S+", "convert pretrained.safetensors"),
    (r"resnet14/resnet8(?=\s)", "resnet8_half/resnet8_quarter"),
    (r"--config\.(\w+)\.epochs=8\b", r"--config.\1.epochs=3"),
    (r"configs/own\.py(?=\s)", "configs/own.py --config.data.image_size=32 --config.student.arch=resnet8_quarter"
     " --config.teacher.epochs=1 --config.frozen.epochs=2 --config.student.epochs=1 --config.student.warmup=0"),
    (r"tests\.campaign .*", "tests.campaign --trials 1 --minutes 5"),
    (r"localhost:1234", lambda _: f"localhost:{free_port()}"),
]  # fmt: skip
# What a block needs that an installation may lack.
PACKAGES = {"teacher.pth": "torch", "--format=onnx": "jax2onnx", "import onnxruntime": "jax2onnx"}
# What a block fenced as `bash` needs that no test machine has.
ELSEWHERE = [
    "srun ",
    "ImageNet's archives: --config.data.dir=DIR",
    "CIFAR-100: results/cifar100/",
    "a GPU: --device gpu",
    "a GPU and CIFAR-100: --minutes",
    "packages for an accelerator: --target",
    "photographs: --images DIR",
    "a download: convert --timm=",
    "a long time: --output cpu-2cores",
]
# What a page says in words, for its `python` blocks to work: file, before, after.
EDITS = {
    "docs/own_network.md": ("hsakd_jax/models/__init__.py", "    mobilenet,\n", "    mobilenet,\n    plain,\n"),
    "docs/own_objective.md": (
        "hsakd_jax/distillation/methods/__init__.py",
        "\nfrom hsakd_jax.models",
        "\nfrom hsakd_jax.distillation.methods.hard import hard\nfrom hsakd_jax.models",
    ),
    "docs/own_data.md": (
        "hsakd_jax/data/builders/__init__.py",
        "\nBUILDERS",
        "\nfrom hsakd_jax.data.builders.bars import Bars\n\nBUILDERS",
    ),
}
# Where a page names a command.
NAMED = re.compile(r"(?:hsakd_jax\.|<!-- begin help )(\w+)")
# Placeholders that flags would refuse.
PLACEHOLDERS = [("SECTION", "student"), ("--config.key=value", "--config.seed=1"), ("HOST0", "localhost")]


def adapt(code):
    for pattern, replacement in SUBSTITUTIONS:
        code = re.sub(pattern, replacement, code)
    return code


def runs(page):
    return any(language == "sh" or (language == "python" and not PLACE.match(code)) for language, code in BLOCKS[page])


@pytest.fixture(scope="session")
def shell():
    """Runs a block in a folder, whose own copy of the package comes first; returns what it printed."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }

    def run(code, folder, language="sh"):
        line = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def inputs(shell, tmp_path_factory):
    """A folder with all that pages take for granted."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_photographs(folder / "photos", {"train": 60, "test": 6}, ("cat", "dog"), "jpg")
    write_photographs(folder / "imagenet", {"train": 9, "val": 4}, ("n01", "n02", "n03"), "JPEG")
    np.save(folder / "images.npy", np.zeros((5, 8, 8, 1), np.uint8))
    shell(adapt("python -m hsakd_jax.main --config=configs/digits.py --workdir=runs/digits\n"), folder)
    export = "python -m hsakd_jax.export --workdir=runs/digits/"
    shell(f"{export}backbone --format=safetensors --output=backbone.safetensors", folder)
    network = create("resnet8", 100, branches=False)
    tensors = to_state_dict("resnet8", network, initialise(network, (32, 32, 3), 0))
    safetensors.numpy.save_file(tensors, folder / "pretrained.safetensors")
    if importlib.util.find_spec("torch"):
        shell(f"{export}teacher --format=torch --output=teacher.pth --with-branches", folder)
    return folder


# Minutes each, of recipes that the notebooks and test_own.py train too.
LONG = ("docs/comparing.md", "docs/own_data.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=getattr(pytest.mark, "thorough" if page in LONG else "slow"))
        for page in PAGES
        if runs(page)
    ],
)
def test_a_page_does_what_it_says(page, shell, inputs, tmp_path):
    """From top to bottom, in a folder of its own."""
    folder = tmp_path / "checkout"
    shutil.copytree(inputs, folder, symlinks=True)
    if "--config=configs/digits.py" in PAGES[page]:
        shutil.rmtree(folder / "runs")
    if page in EDITS:
        shutil.copytree(ROOT / "hsakd_jax", folder / "hsakd_jax", ignore=shutil.ignore_patterns("__pycache__"))
        edit(folder, page)
    left_out, lost = [], []
    for language, code in BLOCKS[page]:
        missing = [name for mark, name in PACKAGES.items() if mark in code and not importlib.util.find_spec(name)]
        if missing:
            left_out += missing
            lost += written(code)
        elif any(re.search(rf"{re.escape(path)}\s", code) for path in lost):
            lost += written(code)
        elif language == "sh":
            shell(adapt(code), folder)
        elif language == "python" and not PLACE.match(code):
            shell(code, folder, language)
    if left_out:
        pytest.skip(f"all but the blocks that need {' and '.join(left_out)}, which is not installed")


def written(code):
    """The files and runs that a block writes: if it is left out, blocks that need them are too."""
    for line in code.replace("\\\n", " ").splitlines():
        yield from re.findall(r"--output=(\S+)", line)
        if "hsakd_jax.main" in line:
            yield from re.findall(r"--workdir=(\S+)", line)


def test_what_a_block_writes():
    commands = "hsakd_jax.main --config=c \\\n  --workdir=runs/a", "hsakd_jax.export --workdir=runs/b --output=x"
    assert [*written("\n".join(commands))] == ["runs/a", "x"]


def edit(folder, page):
    """Puts the page's code where it says."""
    path, before, after = EDITS[page]
    source = (folder / path).read_text()
    assert source.count(before) == 1
    (folder / path).write_text(source.replace(before, after))
    for language, code in BLOCKS[page]:
        place = PLACE.match(code) if language == "python" else None
        if not place or place[1].startswith("tests/"):
            continue
        target, code = folder / place[1], code[place.end() :]
        if not target.exists():
            target.write_text(code)
            continue
        source = target.read_text()
        opening = re.search(rf"^{place[2]}\b.* = \{{\s*", source, re.MULTILINE)
        target.write_text(source[: opening.end()] + code + source[opening.end() :])


def test_generated_parts_are_those_of_the_code():
    for page in GENERATE["PAGES"]:
        text = (ROOT / page).read_text()
        assert text.count("<!-- begin ") == len(GENERATE["PART"].findall(text)) > 0
        assert text == GENERATE["filled"](text), f"{page}: run python docs/generate.py"


def test_what_is_not_run_has_its_reason():
    used = set()
    for page, blocks in BLOCKS.items():
        for language, code in blocks:
            assert language in ("sh", "python", "bash", "text"), (page, language)
            if language == "bash":
                reasons = {why for why in ELSEWHERE if why.rpartition(": ")[2] in code}
                assert reasons, (page, code)
                used |= reasons
            if language == "text":
                assert "python -m" not in code, (page, code)
    assert used == set(ELSEWHERE)


def mentioned(text):
    """Commands and config keys in a page, but for its `sh` blocks: lists of words, each beginning with the command."""
    text = re.sub(r"^```sh\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    for old, new in PLACEHOLDERS:
        text = text.replace(old, new)
    for command, words in re.findall(r"python -m hsakd_jax\.(\w+)((?: [^\n`#&]*)?)", text):
        yield [command, *shlex.split(words if words.count('"') % 2 == 0 else words.rpartition('"')[0])]
    for snippet in re.findall(r"`((?:--config[.\w]*=|configs/\w+\.py)[^`\n]*)`", text):
        words = shlex.split(snippet.replace("configs/", "--config=configs/", snippet.startswith("configs/")))
        if not words[0].startswith("--config="):
            words.insert(0, "--config=configs/cifar100.py")
        yield ["main", "--workdir=DIR", *words]


def parse(command, *words):
    return cli.parse(importlib.import_module(f"hsakd_jax.{command}").COMMAND, words)


def test_what_is_not_run_is_read_by_its_flags(monkeypatch):
    monkeypatch.chdir(ROOT)
    for wrong, reason in (
        (["main", "--config=configs/cifar100.py", "--workdir=DIR", "--config.sed=1"], "unknown config key 'sed'"),
        (["predict", "--tpo=5", "x"], "tpo"),
    ):
        with pytest.raises(UserError, match=reason):
            parse(*wrong)
    commands = [words for text in PAGES.values() for words in mentioned(text)]
    assert {"main", "summary"} <= {words[0] for words in commands} <= set(COMMANDS)
    assert sum(words[0] == "main" for words in commands) > 50
    whole = [words for words in commands if words[0] == "main" and words[1] != "--workdir=DIR"]
    assert len(whole) > 5
    for words in commands:
        values, _ = parse(*words)
        if words in whole:  # its keys have an effect
            config = values.config.to_dict()
            validate.check_types(config)
            validate.check(config, {name: section_of(config, name) for name in recipes_of(config)}, words)


def test_flags_and_extras_exist():
    """A flag in a sentence is one of a command that the line names, or else of one that the page names."""
    flags = {name: FlagValues() for name in COMMANDS}
    for name, values in flags.items():
        importlib.import_module(f"hsakd_jax.{name}").COMMAND.define_flags(values)
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for page, text in PAGES.items():
        if not page.startswith("benchmarks"):
            for line in text.splitlines():
                named = [name for name in NAMED.findall(line) if name in flags] or NAMED.findall(text)
                known = {flag for name in named if name in flags for flag in flags[name]} | {"config", "help"}
                for words in re.findall(r"`(--[^`]*)`", line):
                    if not words.startswith("--config."):  # those are read above, all of them
                        for flag in re.findall(r"(?<!\S)--([\w-]+)", words):
                            assert flag.replace("-", "_") in known, (page, flag)
        for extra in re.findall(r"pip install -e '\.\[(\w+)\]'", text):
            assert extra in extras, (page, extra)


def test_links_lead_to_files():
    """The site refuses a link to a folder, which GitHub shows."""
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#\s]+)", text)]
    here = [(page, link) for page, link in links if not link.startswith(("https:", "http:", "mailto:"))]
    assert len(here) > 100
    assert not [(page, link) for page, link in here if not ((ROOT / page).parent / link).is_file()]


@pytest.mark.slow
def test_the_site_builds_and_needs_nothing_else(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="needs the extra 'docs'")
    line = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "doctrees", "-c", "docs"]
    done = subprocess.run([*line, ".", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for page in PAGES:
        text = (tmp_path / "site" / page).with_suffix(".html").read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]*)|<link[^>]* href=\"([^\"]*)", text)
        assert not [url for pair in loaded for url in pair if url.startswith(("http:", "https:", "//"))], page
    assert "Exit status: 0 done, 2 bad input" in (tmp_path / "site/docs/commands.html").read_text()
    assert 'id="first-run"' in (tmp_path / "site/index.html").read_text()


def test_every_method_has_its_paper():
    rows = re.findall(r"^\| (`.*?) \| .* \|$", PAGES["docs/methods.md"].partition("## Settings")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    learning = {name for name, recipe in RECIPES.items() if recipe.objective in ("kd", "methods") and recipe.teacher}
    learning = {name for name in learning if not re.search(r"_\d\d$", name)} - {*OURS}
    assert learning - named == set()
    source = "".join(path.read_text() for path in (ROOT / "hsakd_jax" / "distillation").rglob("*.py"))
    cited = re.findall(r"arxiv.org/abs/([\d.]+)", PAGES["docs/methods.md"])
    assert {number for number in cited if f"arXiv {number}" not in source} == {"2107.13715"}  # HSAKD's
