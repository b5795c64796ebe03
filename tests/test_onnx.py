"""ONNX files against JAX, a network of each family; needs the extra 'onnx', which .ci/run installs by itself."""

import numpy as np
import pytest
import reference

from hsakd_jax.exporting import FORMATS, TOLERANCE, Export, compare

pytest.importorskip("jax2onnx", reason="the extra 'onnx' is not installed")


@pytest.mark.filterwarnings("ignore")  # of other packages
@pytest.mark.parametrize(
    "name", ["resnet20_aux", "wrn_16_2", "vgg13_bn", "mobilenetV2", "ShuffleV1", "ShuffleV2", "resnet18_imagenet"]
)
@pytest.mark.parametrize("preprocess", [False, True])
def test_onnx(name, preprocess, tmp_path):
    if preprocess and name != "wrn_16_2":
        pytest.skip("the same for every network")
    arch, network = reference.create(name)
    side = arch["resolution"]
    config = {"network": {"image_shape": [side, side, 3]}, "data": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    variables = reference.variables(arch, dtype=np.float32)
    exported = Export(name.removesuffix("_aux"), network, variables, config, preprocess)
    difference, greatest = compare(exported, FORMATS["onnx"][0](exported, tmp_path / "x.onnx"))
    assert difference <= TOLERANCE * greatest
