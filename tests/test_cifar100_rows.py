"""The weights in results/cifar100 give the rows of results/cifar100.md."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from hsakd_jax.data.dataset import Dataset
from hsakd_jax.data.datasets import Splits
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
    page, parts = (ROOT / "results/cifar100.md").read_text(), done.stdout.strip().split("\n\n")
    assert len(parts) == 3  # rows, baselines of both programs, their difference
    for part in parts:
        assert part in page


def test_the_training_in_pytorch_learns_and_resumes(tmp_path):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_networks import create
    from results.cifar100 import in_pytorch

    labels = np.arange(96, dtype=np.int32) % 3
    images = np.random.default_rng(0).integers(0, 60, (96, 32, 32, 3), np.uint8)
    images[np.arange(96), :, :, labels] += 150  # a class is a colour
    splits = Splits(Dataset(images, labels), None, Dataset(images, labels), ())
    whole = in_pytorch.train(splits, tmp_path / "whole", 10, [8], seed=0)
    assert whole["top1_by_epoch"]["10"] > 90
    with pytest.raises(SystemExit, match="has other settings"):
        in_pytorch.train(splits, tmp_path / "whole", 10, [8], seed=1)
    in_pytorch.train(splits, tmp_path / "parts", 4, [8], seed=0)
    torch.manual_seed(1)
    parts = in_pytorch.train(splits, tmp_path / "parts", 10, [8], seed=0)
    assert parts["correct"] == whole["correct"]
    first, second = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    torch.testing.assert_close(second["network"], first["network"], rtol=0, atol=0)
    (group,) = first["optimizer"]["param_groups"]
    settings = ("lr", "momentum", "weight_decay", "nesterov")
    assert [group[key] for key in settings] == pytest.approx([0.005, 0.9, 5e-4, True])
    assert len(group["params"]) == len(list(create("resnet20", 100, branches=False).parameters()))


def test_images_are_cropped_and_mirrored_in_pytorch():
    torch = pytest.importorskip("torch")
    from results.cifar100 import in_pytorch

    torch.manual_seed(0)
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(image[0], (4, 4, 4, 4))
    found = {tuple(one.flatten().tolist()) for one in in_pytorch.augmented(image.repeat(5000, 1, 1, 1))}
    crops = [padded[:, i : i + 3, j : j + 3] for i in range(9) for j in range(9)]
    assert found == {tuple(one.flatten().tolist()) for crop in crops for one in (crop, crop.flip(-1))}
