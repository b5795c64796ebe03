"""Checkpoints of PyTorch: every form found in the wild, every network, and what is refused."""

import argparse
import io
import os
import pickle
import random
import sys
import warnings
import zipfile
from functools import partial

import jax
import numpy as np
import pytest
import reference
import safetensors.numpy

from hsakd_jax import load_torch
from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.interop import importing, torch_files, torch_weights
from hsakd_jax.models import create
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import initialise

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed; .ci/run does it")
ARCHITECTURES = reference.read("architectures.json")["architectures"]


@pytest.fixture(scope="module")
def tensors():
    """The golden weights of resnet8 as its PyTorch network saves them."""
    arch = reference.architecture("resnet8")
    values = {k: torch.from_numpy(v) for k, v in reference.state_dict(arch, dtype=np.float32).items()}
    return {k: values.get(k, torch.tensor(0)) for k, _ in arch["state_dict"]}


@pytest.fixture(scope="module")
def expected(tensors):
    """Their variables."""
    return load_torch(tensors, "resnet8")


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_of_every_network(name):
    """Found from its tensors, and given back bit for bit; that the places are right, test_golden_outputs shows."""
    arch = reference.architecture(name)
    given = reference.state_dict(arch, dtype=np.float32)
    plain, with_branches = name.removesuffix("_aux"), name.endswith("_aux")
    kept, foreign = torch_weights.unwrap(torch_files.Content(given), name)
    found = torch_weights.recognise(kept, plain if name == "mobilenetV2" else "", name)
    assert (found.name, found.num_classes, found.branches) == (plain, arch["num_classes"], with_branches)
    assert not foreign
    back = torch_weights.to_state_dict(plain, found.network(), torch_weights.to_variables(kept, found, ""))
    assert {key: list(value.shape) for key, value in back.items()} == dict(arch["state_dict"])
    for key, value in given.items():
        assert back[key].dtype == value.dtype
        assert np.array_equal(back[key], value)


def wrapped(tensors):
    """SSKD's student: a backbone beside a projection head."""
    head = {f"proj_head.{i}.{leaf}": torch.zeros(64) for i in (0, 2) for leaf in ("weight", "bias")}
    return {
        "state_dict": {f"backbone.{k}": v for k, v in tensors.items()} | head,
        "best_acc": np.float64(71.2),
        "improved": np.bool_(True),
    }


def averaged(tensors, plain, average):
    """A network beside the average of its weights, as parts of one module; the weights are those of the first part."""
    both = {plain: tensors, average: {k: v + 1 for k, v in tensors.items()}}
    return {f"{name}.{k}": v for name, part in both.items() for k, v in part.items()} | {"n_averaged": torch.tensor(9)}


FORMS = {
    "hsakd": lambda t: {
        "net": t,
        "acc": 0.7,
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": t["fc.bias"]}}},
    },
    "backbone": lambda t: {"state_dict": {f"module.{k}": v for k, v in t.items()}},
    "crd": lambda t: {"epoch": 240, "model": t, "best_acc": torch.tensor(72.3)},
    "sskd": wrapped,
    "bare": lambda t: t,
    "compiled": lambda t: {f"_orig_mod.module.{k}": v for k, v in t.items()},
    "crd, last epoch": lambda t: {"opt": argparse.Namespace(lr=0.05), "model": t, "optimizer": {}},
    "other section": lambda t: {"weights": t, "args": {"lr": 0.1}},
    "lightning": lambda t: {"state_dict": {f"model.{k}": v for k, v in t.items()}, "pytorch-lightning_version": "2.5"},
    "compiled lightning": lambda t: {"state_dict": {f"net._orig_mod.{k}": v for k, v in t.items()}, "epoch": 3},
    "averaged": lambda t: {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in t.items()}},
    "profiled": lambda t: {**t, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1).double()},
    "moving average alone": lambda t: {"model_ema": {f"module.{k}": v for k, v in t.items()}, "epoch": 3},
    "moving average beside": lambda t: {"state_dict": t, "state_dict_ema": {k: v + 1 for k, v in t.items()}},
    "timm": lambda t: {
        "epoch": 3,
        "arch": "resnet8",
        "state_dict": t,
        "optimizer": {"state": {"fc.bias": {"exp_avg": t["fc.weight"]}}},
        "args": argparse.Namespace(lr=0.1),
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": {k: v + 1 for k, v in t.items()},
        "metric": 71.2,
    },
    "torchvision's averaged model": lambda t: {
        "model_ema": {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in t.items()}}
    },
    "nested moving average": lambda t: {"ema": {"module": t, "updates": 9}, "mean": {"pixel": torch.zeros(3)}},
    "sharded": lambda t: {
        "model": {f"_fsdp_wrapped_module.{k.replace('.', '._fsdp_wrapped_module.', 1)}": v for k, v in t.items()}
    },
    "checkpointed and compiled inside": lambda t: {
        k.replace("layer1.", "layer1._checkpoint_wrapped_module._orig_mod."): v for k, v in t.items()
    },
    "lightning's average alone": lambda t: {"state_dict": {f"ema_model.{k}": v for k, v in t.items()}},
    "lightning's average beside": lambda t: {"state_dict": averaged(t, "net", "ema_net")},
    "average and step": lambda t: {"initted": torch.tensor(True), **averaged(t, "online_model", "ema_model")},
    "lightning callback": lambda t: {
        "state_dict": {f"model.{k}": v for k, v in t.items()},
        "callbacks": {"EMA": {"ema_state_dict": {k: v + 1 for k, v in t.items()}}},
        "hyper_parameters": {"mean": torch.zeros(3)},
    },
    "student alone": lambda t: {"model": {f"module.student.{k}": v for k, v in t.items()}},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_found_in_the_wild(form, legacy, tensors, expected, tmp_path):
    torch.save(FORMS[form](tensors), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(load_torch(tmp_path / "x.pth"), expected)


def pair(t):
    """What a distiller saves: both networks and a layer between them."""
    others = {f"student.{k}": v + 1 for k, v in t.items()}
    return {"model": {**{f"teacher.{k}": v for k, v in t.items()}, **others, "regressor.weight": t["fc.weight"]}}


@pytest.mark.parametrize(
    ("form", "part", "words"),
    [
        (pair, "teacher", "contains a student and a teacher: choose one .--part=student or --part=teacher"),
        (lambda t: {"a": {k: v + 1 for k, v in t.items()}, "b": t}, "b", "contains the state dicts a, b: choose one"),
        (lambda t: {"state_dict": {k: v + 1 for k, v in t.items()}, "ema": t}, "ema", ""),
        (lambda t: averaged(t, "ema_model", "model"), "ema_model", ""),
        (lambda t: {"ema": {"module": t, "updates": 9}, "net": {k: v + 1 for k, v in t.items()}}, "ema.module", ""),
        (lambda t: {f"encoder.{k}": v for k, v in t.items()}, "encoder", "or the prefix of its tensors .--part"),
        (lambda t: {f"teacher.{k}": v for k, v in t.items()}, "teacher", ""),
    ],
)
def test_one_of_several_parts_is_chosen(form, part, words, tensors, expected):
    if words:
        with pytest.raises(UserError, match=words):
            load_torch(form(tensors))
    assert_same(load_torch(form(tensors), part=part), expected)
    with pytest.raises(UserError, match="has no part 'absent'|contains the state dicts|has no part"):
        load_torch(form(tensors), part="absent")


def test_convert_names_the_parts_and_what_is_left_out(tensors, tmp_path):
    torch.save({"model": {**tensors, "total_ops": torch.zeros(1)}, "model_ema": tensors}, tmp_path / "x.pth")
    said = io.StringIO()
    importing.convert(tmp_path / "x.pth", tmp_path / "run", Console(said))
    assert "1 tensors that are not the network's are left out: total_ops" in said.getvalue()
    assert "the weights are those of model; to use others of the file, set --part=model_ema" in said.getvalue()
    with pytest.raises(UserError, match=r"part \(None there, model_ema here\)"):
        importing.convert(tmp_path / "x.pth", tmp_path / "run", Console(said), part="model_ema")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (288, 288, "bicubic", 0.485)),
        ({"image_size": 144}, (144, 144, "bicubic", 0.485)),
        ({"resize": 320, "interpolation": "bilinear"}, (288, 320, "bilinear", 0.485)),
        ({"mean": (0.5,), "std": (0.5,), "data": "image_tree"}, (288, 288, "bicubic", 0.5)),
    ],
)
def test_a_file_for_imagenet_has_the_published_preprocessing(given, expected, tmp_path):
    tensors = reference.state_dict(reference.torchvision()["efficientnet_b2"], dtype=np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    said = io.StringIO()
    importing.convert(tmp_path / "x.safetensors", tmp_path / "run", Console(said), **given)
    data = RunDirectory(tmp_path / "run").config().data
    assert (data.image_size, data.resize, data.interpolation, data.mean[0]) == expected
    assert f"the middle of images scaled to {expected[1]} ({expected[2]}), mean [{expected[3]}" in said.getvalue()


def test_a_network_for_small_images_crops_only_what_is_scaled(tensors, tmp_path):
    torch.save(tensors, tmp_path / "x.pth")
    for resize, expected in ((0, ("pad", None, None)), (36, ("resized", 32, 36))):
        importing.convert(tmp_path / "x.pth", tmp_path / f"{resize}", Console(io.StringIO()), resize=resize)
        data = RunDirectory(tmp_path / f"{resize}").config().data
        assert (data.crop, data.image_size, data.resize) == expected


def test_an_image_folder_has_no_margin_to_crop(tmp_path):
    tensors = reference.state_dict(reference.torchvision()["efficientnet_b1"], dtype=np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"the middle of images scaled to 256, .* whole squares: set --data=image_tree"):
        importing.convert(tmp_path / "x.safetensors", tmp_path / "run", Console(silent=True), data="image_folder")
    importing.convert(
        tmp_path / "x.safetensors", tmp_path / "run", Console(silent=True), data="image_folder", resize=240
    )


def test_safetensors_need_no_torch(tensors, expected, tmp_path, monkeypatch):
    safetensors.numpy.save_file({k: v.numpy() for k, v in tensors.items()}, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(load_torch(tmp_path / "x.safetensors"), expected)
    with pytest.raises(UserError, match=r"pip install -e '\.\[torch\]'"):
        load_torch(tmp_path / "x.pth")


def test_half_precision_becomes_float32(tensors):
    half = load_torch({k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}


def test_networks_with_equal_tensors_are_asked_for():
    """SSKD's MobileNetV2 and HSAKD's differ in a stride only; CRD's has another name for its last layer."""
    hsakd = reference.state_dict(reference.architecture("mobilenetV2"), dtype=np.float32)
    with pytest.raises(UserError, match="fits mobilenetV2 and mobilenetV2_crd.*name the one it is of"):
        load_torch(hsakd)
    crd = {key.replace("classifier.", "classifier.0."): value for key, value in hsakd.items()}
    found = torch_weights.recognise(crd, "", "")
    assert found.name == "mobilenetV2_crd"
    for source in (hsakd, crd):
        assert_same(load_torch(source, "mobilenetV2_crd"), load_torch(hsakd, "mobilenetV2"))
    assert set(crd) <= set(torch_weights.to_state_dict("mobilenetV2_crd", found.network(), load_torch(crd)))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(legacy, tensors, tmp_path):
    content = {"net": tensors, "extra": Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        UserError, match=r"holds more than tensors .posix\.mkdir. and could execute code, so it was not loaded"
    ):
        load_torch(tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


def write_legacy(path, pickled):
    """A file of torch.save in its legacy form around a pickle of one's own."""
    parts = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + pickled + pickle.dumps([], 2))


def write_zip(path, pickled, name="x/data.pkl", **options):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickled, **options)
        archive.writestr("x/version", "3\n")


# A tuple in a tuple in a tuple ..., and a dict with it as a key, whose hash is a recursion in C.
NESTED = b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x01s."
# The same by way of the memo: each tuple is put there, dropped and got again.
MEMOISED = b"\x80\x02}K\x01" + b"\x85q\x010h\x01" * 500 + b"K\x01s."


# A tuple of a tuple twice, which contains another one twice ...: 60 levels are 10^18 objects to Python's hash.
DOUBLED = b"\x80\x02})q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"K\x01s."


@pytest.mark.parametrize("pickled", [NESTED, MEMOISED, DOUBLED], ids=["nested", "memoised", "doubled"])
@pytest.mark.parametrize("write", [write_legacy, write_zip, partial(write_zip, name="x/DATA.PKL")])
def test_a_nested_pickle_is_refused(write, pickled, tmp_path):
    write(tmp_path / "x.pth", pickled)
    with pytest.raises(UserError, match=r"contains more than the tensors of a network \(nested"):
        load_torch(tmp_path / "x.pth")


def test_a_pickle_of_many_objects_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MAX_OPERATIONS", 1000)
    write_zip(tmp_path / "x.pth", pickle.dumps(list(range(2000)), 2))
    with pytest.raises(UserError, match="very many objects"):
        load_torch(tmp_path / "x.pth")


def test_a_zip_bomb_is_refused(tmp_path):
    write_zip(tmp_path / "x.pth", bytes(50_000_000), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.pth").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"x.pth of 0.0 MB would unpack to 50.0 MB, so it was not loaded"):
        load_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", [2, 4])
def test_memory_that_is_not_in_the_file_is_refused(protocol, tmp_path):
    """`bytearray(N)` is N bytes."""

    class Bomb:
        def __reduce__(self):
            return bytearray, (2**20,)

    write_zip(tmp_path / "x.pth", pickle.dumps({"a": Bomb()}, protocol))
    with pytest.raises(UserError, match="would fill memory with more than the file contains"):
        load_torch(tmp_path / "x.pth")


def test_tensors_that_share_their_numbers_too_often_are_refused(tensors):
    numbers = torch.zeros(10, dtype=torch.half)
    tied = {**tensors, "a.weight": numbers, "b.weight": numbers}
    assert len(torch_files._arrays(tied, "x")) == len([key for key in tied if not key.endswith("tracked")])
    with pytest.raises(UserError, match="share their numbers too often"):
        torch_files._arrays({f"{i}.weight": numbers for i in range(20)}, "x")


def test_tensors_of_more_numbers_than_the_file_are_refused(tensors, tmp_path):
    torch.save({**tensors, "fc.bias": torch.zeros(1, dtype=torch.half).expand(2**40)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="fc.bias has more numbers than the file"):
        load_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused(share, legacy, tensors, tmp_path):
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"x\.pth is (damaged|empty)"):
        load_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_end_in_one_line_or_in_a_network(legacy, tensors, tmp_path):
    torch.save(
        FORMS["crd"](tensors) | {"acc": np.float64(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    content, moment = (tmp_path / "x.pth").read_bytes(), random.Random(0)
    pickled = content.index(b"best_acc")  # where damage is more than another weight
    messages = []
    for _ in range(200):
        flipped = bytearray(content)
        for _ in range(3):
            flipped[moment.randrange(max(0, pickled - 4000), pickled + 4000)] ^= moment.randrange(1, 256)
        (tmp_path / "x.pth").write_bytes(flipped)
        try:
            load_torch(tmp_path / "x.pth", "resnet8")
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


def test_tensors_that_are_no_weights_are_refused(tensors, tmp_path):
    for value in (tensors["fc.bias"].to(torch.int8), tensors["fc.bias"].to(torch.complex64)):
        with pytest.raises(UserError, match=r"fc\.bias is of (int8|complex64), not floating point"):
            load_torch({**tensors, "fc.bias": value})
    torch.save({**tensors, "fc.bias": tensors["fc.bias"].to_sparse()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is damaged or no"):
        load_torch(tmp_path / "x.pth")
    with pytest.raises(UserError, match="unknown network 'resnet_9': did you mean"):
        load_torch(tensors, "resnet_9")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html>Quota exceeded</html>", "is a web page, no checkpoint"),
        (b"lr: 0.1\n", "is a text file, no checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG image, no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, which `git lfs pull` replaces"),
        (b"\x08\x0a\x12\x07pytorch" + bytes(range(256)), "is an ONNX file, no checkpoint"),
        (bytes(range(256)) * 16, "is damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_needs_no_torch(content, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.pth {words}.*choose a file of torch.save, or safetensors"):
        load_torch(tmp_path / "x.pth")


def test_other_files_are_refused(tensors, tmp_path):
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, its files stay
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is a TorchScript archive: save the network's state_dict"):
        load_torch(tmp_path / "x.pth")
    for name in ("x/model.json", "x/constants.pkl"):  # of PyTorch 1.0, and of today
        write_zip(tmp_path / "x.pth", "{}", name)
        with pytest.raises(UserError, match=r"x\.pth is a TorchScript archive"):
            load_torch(tmp_path / "x.pth")
    for legacy in (False, True):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            UserError, match=r"holds more than tensors .torch\.nn\S+Linear. .* save the state dict alone"
        ):
            load_torch(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(UserError, match=r"x\.pth is a zip archive, no checkpoint"):
        load_torch(tmp_path / "x.pth")
    one = {**tensors, "fc.weight": tensors["fc.weight"][:1], "fc.bias": tensors["fc.bias"][:1]}
    with pytest.raises(UserError, match=r"has one output \(fc.weight is of \[1, 64\]\): a classifier here has"):
        load_torch(one)
    whole = safetensors.numpy.save({k: v.numpy() for k, v in tensors.items()})
    (tmp_path / "x.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged safetensors"):
        load_torch(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="can't be read.*check the path"):
        load_torch(tmp_path / "absent.pth")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="can't be read.*it is a run already"):
        load_torch(tmp_path / "run")
    (tmp_path / "run/model.safetensors").touch()
    with pytest.raises(UserError, match="can't be read.*did you mean .*run/model.safetensors"):
        load_torch(tmp_path / "run")
    torch.save({"epoch": 3, "log": [1, 2]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no state dict under net, state_dict, model .it holds epoch, log"):
        load_torch(tmp_path / "x.pth")


def test_differences_are_listed(tensors):
    with pytest.raises(UserError, match=r"no checkpoint of resnet14: 30 missing: .*it is one of resnet8"):
        load_torch(tensors, "resnet14")
    with pytest.raises(UserError, match="no checkpoint of vgg8_bn: it lacks the first or the last layer"):
        load_torch(tensors, "vgg8_bn")
    changed = dict(tensors)
    del changed["bn1.bias"]
    changed["conv1.weight"] = changed["conv1.weight"][:8]
    changed["head.extra"] = changed["fc.bias"]
    with pytest.raises(
        UserError, match=r"1 missing: bn1\.bias; 1 extra: head\.extra; 1 of another shape: conv1\.weight \[8, 3, 3, 3\]"
    ):
        load_torch(changed, "resnet8")
    with pytest.raises(UserError, match="fits none of our networks; its first tensors are conv1.weight"):
        load_torch(changed)
    changed["conv_stem.weight"] = changed["conv1.weight"]
    for name in ("", "mobilenet_v3_small"):
        with pytest.raises(
            UserError, match="EfficientNet, MobileNetV2 and V3 are those of torchvision here, not timm's"
        ):
            load_torch(changed, name)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = create("resnet8_quarter", 10, branches=False)
    tensors = torch_weights.to_state_dict("resnet8_quarter", network, initialise(network, (32, 32, 3), 0))
    tensors["bn1.running_var"] = tensors["bn1.running_var"].copy()
    tensors["bn1.running_var"][3] = np.nan
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="NaN or infinite numbers in bn1.running_var: its training diverged"):
        load_torch(tmp_path / "x.safetensors")
