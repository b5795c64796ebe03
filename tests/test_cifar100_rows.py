"""The weights in results/cifar100 give the rows of results/cifar100.md."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from hsakd_jax.data.locate import root_of

DATA = root_of("")  # before conftest's fixture sets another folder
ROWS = sorted((ROOT / "results/cifar100").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar100").is_dir(), reason="CIFAR-100 is not in TFDS_DATA_DIR")
@pytest.mark.parametrize("weights", ROWS, ids=lambda path: path.stem)
def test_weights_give_their_row(weights, run_command, tmp_path):
    row = json.loads(weights.with_suffix(".json").read_text())["results"]["last"]
    done = run_command("convert", weights, "--data=cifar100", f"--output={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    done = run_command("evaluate", f"--workdir={tmp_path}/run", f"--data_dir={DATA}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Another machine rounds otherwise, which moves an image or two of 10,000 whose best classes are nearly equal.
    assert [found["top1"], found["top5"]] == pytest.approx([row["top1"], row["top5"]], abs=0.03)


def test_page_has_the_rows_of_the_files():
    done = subprocess.run(
        [sys.executable, "results/cifar100/table.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout in (ROOT / "results/cifar100.md").read_text()
