"""Exported files in their own runtimes reach the accuracy of their run; files of strangers are refused."""

import json
import shlex
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_refused
from jax import export as jax_export
from msgspec import structs
from PIL import Image
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.sharding import Devices
from hsakd_jax.data import datasets
from hsakd_jax.data.augment import normalise, prepare
from hsakd_jax.data.image_files import UnreadableImageError
from hsakd_jax.evaluation.accuracy import load_test, make_measure, preprocessing
from hsakd_jax.interop import exporters, hub, model_files, torch_files
from hsakd_jax.interop.exporters import export
from hsakd_jax.interop.model_files import evaluate_file
from hsakd_jax.models import create
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.directory import RunDirectory
from hsakd_jax.runs.restore import build_network, initialise, restore

CIFAR = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}


def make(path, seed=3, **keys):
    """A run of the digits, of random weights."""
    datasets.load("digits")
    directory = RunDirectory(path)
    config = run_config(**{"classes": "0123456789", "student__arch": "resnet8_quarter", **keys})
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, jax.device_get(initialise(build_network(config.network), config.network.image_shape, seed)))
    checkpoints.close()
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run") / "student")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Speeds are measured, but not well."""
    monkeypatch.setattr(model_files, "SECONDS", 0.0)
    monkeypatch.setattr(model_files, "CALLS", 1)


def needs_onnx(file_format="onnx"):
    """Skips a test of ONNX where the extra is missing. jax2onnx is not as strict as our tests."""
    if file_format == "onnx":
        pytest.importorskip("jax2onnx", reason="the extra 'onnx' is not installed; .ci/run does it")
        return jax.numpy_rank_promotion("allow")
    return nullcontext()


def of_checkpoint(run):
    """Which test images the checkpoint classifies correctly, as `evaluate` has it."""
    config = RunDirectory(run).config()
    network, variables = restore(run)
    devices = Devices()
    measure = make_measure(network, devices, config, config.eval_batch)
    return measure(devices.replicate(variables), load_test(run, config))


@pytest.mark.filterwarnings("ignore")  # of jax2onnx
@pytest.mark.parametrize(
    ("file_format", "preprocess"),
    [
        ("stablehlo", False),
        ("stablehlo", True),
        ("safetensors", False),
        ("hub", False),
        ("onnx", False),
        ("onnx", True),
    ],
)
def test_a_file_classifies_each_test_image_as_its_run_does(file_format, preprocess, run, tmp_path):
    path = tmp_path / f"x.{file_format}"
    with needs_onnx(file_format):
        report = export(run, path, file_format, preprocess=preprocess, measure=True)
    expected = of_checkpoint(run)
    (ended,) = report["measured"]
    found = evaluate_file(path, run)
    for measured in (ended, found):
        np.testing.assert_array_equal(measured.correct, expected.correct)
        assert (measured.top1, measured.top5) == pytest.approx([expected.accuracies[k] for k in ("top1", "top5")])
        assert list(measured.images_per_s) == [1, 64]
        assert min(measured.images_per_s.values()) > 0
        assert measured.bytes == model_files.find(path).stat().st_size
        assert measured.test_images == 896
    assert json.loads(json.dumps(found.as_json()))["top1"] == found.top1
    text = model_files.as_table([found], 10)
    assert f"{found.top1:.2f}" in text
    assert "top-5" in text
    assert "top-5" not in model_files.as_table([found], 5)


@pytest.mark.parametrize("normal", [CIFAR, {"mean": (0.31,), "std": (0.38,)}])
def test_the_bits_of_the_preprocessing_do_not_depend_on_the_compiler(normal):
    """All 256 pixels: an operation at a time, compiled, and in a StableHLO file."""
    channels = len(normal["mean"])
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1).repeat(channels, -1)
    settings = {**normal, "shape": (8, 8), "resize": 8}
    expected = np.asarray(normalise(jnp.asarray(images), **normal))
    exact = (images / 255 - np.array(normal["mean"])) / np.array(normal["std"])
    np.testing.assert_allclose(expected, exact, rtol=0, atol=3e-7)
    compiled = jax.jit(lambda x: (prepare(x, **settings), prepare(x, **settings).sum(-1)))
    np.testing.assert_array_equal(compiled(images)[0], expected)
    exported = jax_export.export(jax.jit(lambda x: prepare(x, **settings)))(
        jax.ShapeDtypeStruct(images.shape, jnp.uint8)
    )
    np.testing.assert_array_equal(jax_export.deserialize(exported.serialize()).call(images), expected)


@pytest.mark.filterwarnings("ignore")
def test_the_bits_of_the_preprocessing_are_the_same_in_onnxruntime():
    with needs_onnx():
        import jax2onnx
        import onnxruntime

        images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1).repeat(3, -1)
        spec = [jax.ShapeDtypeStruct(("batch", 8, 8, 3), jnp.uint8)]
        program = jax2onnx.to_onnx(lambda x: prepare(x, **CIFAR, shape=(8, 8), resize=8), inputs=spec)
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_array_equal(found, normalise(jnp.asarray(images), **CIFAR))


def test_a_file_with_its_preprocessing_gives_the_probabilities_of_the_network(run, tmp_path):
    export(run, tmp_path / "x.stablehlo", "stablehlo", preprocess=True)
    config = RunDirectory(run).config()
    program = model_files.open_program(tmp_path / "x.stablehlo", config, run)
    images = load_test(run, config).images
    network, variables = restore(run)
    logits = network.apply(variables, prepare(jnp.asarray(images), **preprocessing(config))).logits
    np.testing.assert_allclose(program.run(images), jax.nn.softmax(logits), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_int8_keeps_the_classes_of_a_trained_network(run_command, call_command, tmp_path):
    """A student of 30 epochs: its normalisation stays in float32, and all its convolutions are in int8."""
    needs_onnx()
    import onnx

    datasets.load("digits")
    run = tmp_path / "run"
    trained = run_command(
        "main", "--config=configs/digits.py:baseline", f"--workdir={run}", "--config.student.epochs=30"
    )
    assert trained.returncode == 0, trained.stderr
    out = call_command(
        "export", f"--workdir={run}", "--format=onnx", "--int8", "--preprocess", f"--output={tmp_path}/x.onnx"
    )
    assert out.returncode == 0, out.stderr
    assert "resnet8_quarter in int8" in out.stdout
    float32, int8 = (line.split() for line in out.stdout.splitlines()[-2:])
    assert (float32[:3], int8[0]) == (["float32,", "not", "kept"], "x.onnx")
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["x.onnx"]

    right = of_checkpoint(run).correct
    found = evaluate_file(tmp_path / "x.onnx", run)
    assert right.mean() > 0.6
    assert (found.correct == right).mean() > 0.97

    graph = onnx.load(tmp_path / "x.onnx").graph
    made_by = {output: node for node in graph.node for output in node.output}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 9
    for node in convolutions:
        image, kernel = (made_by[name] for name in node.input[:2])
        assert image.op_type == kernel.op_type == "DequantizeLinear"
        assert kinds[kernel.input[0]] == onnx.TensorProto.INT8
        assert (
            len(next(t for t in graph.initializer if t.name == kernel.input[1]).dims) == 1
        )  # a scale for each channel
    first = next(i for i, node in enumerate(graph.node) if node.op_type in ("Conv", "QuantizeLinear"))
    assert [node.op_type for node in graph.node[:first] if node.op_type not in ("DequantizeLinear", "Transpose")] == [
        "Cast",
        "Sub",
        "Mul",
    ]


def test_calibration_images_are_training_images(run):
    train = datasets.load("digits", fraction=RunDirectory(run).config().data.fraction, seed=0).train
    batches = list(exporters.quantising.calibration_images(RunDirectory(run).config()))
    assert [len(batch) for batch in batches] == [64, len(train.labels) - 64]  # all 100, fewer than 512
    np.testing.assert_array_equal(np.concatenate(batches), train.images)


def test_an_int8_network_needs_training_images(run, tmp_path, call_command):
    words = ("export", f"--workdir={run}", "--format=onnx", "--int8", f"--output={tmp_path}/x.onnx")
    refused = call_command(*words, f"--data_dir={tmp_path}/absent/x")
    assert_refused(refused, "int8 needs training images for its calibration: ")
    assert not (tmp_path / "x.onnx").exists()


def foreign_program(path):
    """A file whose program calls a function of the process."""

    def call(images):
        return jax.ffi.ffi_call("any_function", jax.ShapeDtypeStruct((images.shape[0], 10), jnp.float32))(images)

    (batch,) = jax_export.symbolic_shape("batch")
    checks = [jax_export.DisabledSafetyCheck.custom_call("any_function")]
    images = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.uint8)
    path.write_bytes(jax_export.export(jax.jit(call), disabled_checks=checks)(images).serialize())


def program_of(*shape, batch=None, dtype=jnp.uint8, outputs=10, make=jnp.zeros):
    """Writes a program of images of that shape."""

    def write(path):
        first = batch or jax_export.symbolic_shape("batch")[0]
        call = jax.jit(lambda images: make((images.shape[0], outputs)))
        path.write_bytes(jax_export.export(call)(jax.ShapeDtypeStruct((first, *shape), dtype)).serialize())

    return write


def small_batches(path):
    """A program of at most 32 images."""
    (batch,) = jax_export.symbolic_shape("batch", constraints=["batch <= 32"])
    call = jax.jit(lambda images: jnp.zeros((images.shape[0], 10)))
    path.write_bytes(jax_export.export(call)(jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.uint8)).serialize())


REFUSED = {
    "absent": ("x.onnx", lambda path: None, "is no file: check the path"),
    "a folder": ("x.onnx", lambda path: path.mkdir(), "is no file: check the path"),
    "no ending": ("x.bin", lambda path: path.touch(), "has none of the endings .onnx, .stablehlo, .safetensors"),
    "empty": ("x.stablehlo", lambda path: path.touch(), "is damaged or no StableHLO file"),
    "noise": ("x.stablehlo", lambda path: path.write_bytes(bytes(range(256)) * 9), "is damaged or no StableHLO file"),
    "foreign code": ("x.stablehlo", foreign_program, "calls code outside of the file, so it was not run"),
    "large images": (
        "x.stablehlo",
        program_of(32, 32, 3),
        r"takes images of \[32, 32, 3\], those of .* are \[8, 8, 1\]",
    ),
    "one batch": ("x.stablehlo", program_of(8, 8, 1, batch=4), "takes batches of 4 only"),
    "vectors": ("x.stablehlo", program_of(8), r"takes uint8 arrays of \['batch', 8\], not images"),
    "integers": ("x.stablehlo", program_of(8, 8, 1, dtype=jnp.int32), "takes int32 arrays"),
    "classes": (
        "x.stablehlo",
        program_of(8, 8, 1, outputs=7),
        r"has outputs of float32 \[448, 7\], not floating point \[448, 10\]",
    ),
    "no scores": (
        "x.stablehlo",
        program_of(8, 8, 1, make=lambda shape: jnp.zeros(shape, bool)),
        r"has outputs of bool \[448, 10\], not floating point",
    ),
    "no outputs": ("x.stablehlo", program_of(8, 8, 1, make=lambda shape: ()), "fails on images of .*: export it again"),
    "small batches": ("x.stablehlo", small_batches, r"fails on images of \[448, 8, 8, 1\] .*: export it again"),
    "no weights": ("x.safetensors", lambda path: path.write_bytes(b"12345678{"), "is a damaged safetensors file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_of_strangers_are_refused(name, run, tmp_path):
    file, write, words = REFUSED[name]
    write(tmp_path / file)
    with pytest.raises(UserError, match=words):
        evaluate_file(tmp_path / file, run)


def test_a_damaged_program_is_one_line_or_runs(run, tmp_path):
    """Single bytes of a file are changed."""
    export(run, tmp_path / "x.stablehlo", "stablehlo")
    content = (tmp_path / "x.stablehlo").read_bytes()
    config, refused = RunDirectory(run).config(), []
    for position in np.random.default_rng(0).choice(len(content), 40, replace=False).tolist():
        changed = bytearray(content)
        changed[position] ^= 0xFF
        (tmp_path / "y.stablehlo").write_bytes(changed)
        try:
            model_files.open_program(tmp_path / "y.stablehlo", config, run)
        except UserError as error:
            refused.append(str(error))
    assert refused
    assert not [line for line in refused if "\n" in line]


@pytest.mark.filterwarnings("ignore")
def test_onnx_files_of_strangers_are_refused(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed; .ci/run does it")
    from onnx import TensorProto, checker, helper

    path = tmp_path / "x.onnx"
    config = RunDirectory(run).config()

    def write(kind=TensorProto.UINT8, shape=("batch", 8, 8, 1), inputs=("images",), weights=None):
        values = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
        out = helper.make_tensor_value_info("out", kind, shape)
        nodes = [helper.make_node("Identity", [inputs[0]], ["out"])]
        graph = helper.make_graph(nodes, "x", values, [out], [weights] if weights else [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        if not weights:
            checker.check_model(model)
        path.write_bytes(model.SerializeToString())

    def refused(words):
        with pytest.raises(UserError, match=words) as caught:
            model_files.open_program(path, config, run)
        assert "\n" not in str(caught.value)

    for content in (b"", bytes(range(256)), b"\x08\x08"):
        path.write_bytes(content)
        refused("is damaged or no ONNX file")
    write(kind=TensorProto.DOUBLE)
    refused(r"takes tensor\(double\) arrays")
    write(shape=("batch", 32, 32, 3))
    refused(r"takes images of \[32, 32, 3\]")
    write(shape=(1, 8, 8, 1))
    refused("takes batches of 1 only")
    write(inputs=("images", "more"))
    refused("takes 2 inputs")
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    write(weights=outside)
    refused("reads its weights from other files")
    write()
    assert model_files.open_program(path, config, run).takes_pixels


def test_weights_of_another_network_are_refused(run, tmp_path):
    other = make(tmp_path / "other", student__arch="resnet8_half")
    fewer = make(tmp_path / "fewer", classes="012")
    for one, words in ((other, "no checkpoint of resnet8_quarter"), (fewer, "is for 3 classes, .* has 10")):
        export(one, tmp_path / f"{one.name}.safetensors", "safetensors")
        with pytest.raises(UserError, match=words):
            evaluate_file(tmp_path / f"{one.name}.safetensors", run)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"classes": "9876543210"}, "has the classes of .* in another order: choose its own run"),
        ({"classes": "abcdefghij"}, "has other classes: '0' where 'a' is expected in .*: choose the file's own run"),
        ({"data__mean": (0.9,)}, r"was exported with other settings .*, mean \(\(0.9,\) there, \(0.31,\) here\)"),
        ({"data__mean": (0.311,)}, ""),  # as good as the same
        ({"data__crop": "resized", "data__image_size": 8, "data__resize": 12}, r"resize \(12 there, 8 here\)"),
    ],
)
def test_weights_that_were_exported_with_other_settings_are_refused(keys, words, run, tmp_path):
    export(make(tmp_path / "other", **keys), tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(UserError, match=words) if words else nullcontext():
        evaluate_file(tmp_path / "x.safetensors", run)


def test_names_that_convert_would_refuse_are_not_exported(tmp_path, capsys):
    tabs = make(tmp_path / "run", classes=[f"n{i}\tdigit" for i in range(10)])
    export(tabs, tmp_path / "x.safetensors", "safetensors")
    assert "the weights contain no settings for `convert`: images are not square, or the" in capsys.readouterr().err
    assert torch_files.read(tmp_path / "x.safetensors").record == ""


def test_a_run_that_diverged_is_not_exported(run, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.acquire(RunDirectory(run).config())
    _, variables = restore(run)
    variables["batch_stats"]["stem"]["bn1"]["var"] = np.full_like(
        variables["batch_stats"]["stem"]["bn1"]["var"], np.nan
    )
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(1, variables)
    checkpoints.close()
    with pytest.raises(UserError, match="the last checkpoint of .* has numbers that are not finite: choose another"):
        export(tmp_path / "run", tmp_path / "x.safetensors", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_is_kept_if_a_test_image_can_not_be_read(run, tmp_path, monkeypatch, capsys):
    def damaged(*_):
        raise UnreadableImageError("3.png can't be read")
        yield

    monkeypatch.setattr(model_files, "batches_of", damaged)
    found = export(run, tmp_path / "x.safetensors", "safetensors", measure=True)
    assert found["measured"] == []
    assert capsys.readouterr().err.endswith("not measured: 3.png can't be read\n")
    assert (tmp_path / "x.safetensors").exists()


def test_a_file_that_fails_is_not_kept(run, tmp_path, monkeypatch):
    def failing(*_):
        raise UserError("x.stablehlo fails on images")

    monkeypatch.setattr(model_files, "measure", failing)
    with pytest.raises(UserError, match="x.stablehlo fails on images"):
        export(run, tmp_path / "x.stablehlo", "stablehlo", measure=True)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_no_fault_of_a_file(run, tmp_path, monkeypatch):
    export(run, tmp_path / "x.stablehlo", "stablehlo")

    def full(_):
        raise MemoryError

    program = model_files.Program("jax", True, full)
    monkeypatch.setitem(model_files.READERS, ".stablehlo", lambda *_: program)
    with pytest.raises(MemoryError):
        evaluate_file(tmp_path / "x.stablehlo", run)


def test_images_in_folders_that_no_one_named_are_not_measured(run, tmp_path, capsys):
    config = RunDirectory(run).config()
    unnamed = structs.replace(config, data=structs.replace(config.data, name="image_folder", dir=None))
    assert exporters._test_images(unnamed, run, None) is None
    assert (
        capsys.readouterr().err == f"not measured: {run} does not name the folder of its images: set --data_dir=DIR\n"
    )


def test_an_export_without_its_data_is_not_measured(run, tmp_path, call_command):
    out = call_command(
        "export", f"--workdir={run}", "--format=safetensors", f"--output={tmp_path}/x.pt", "--data_dir=/nowhere"
    )
    assert out.returncode == 0, out.stderr
    does_it = f"`python -m hsakd_jax.evaluate --workdir={run} --data_dir=/nowhere` does it"
    assert out.stderr == f"not measured: its data digits is not prepared: {does_it}\n"
    assert out.stdout.count("\n") == 1
    quiet = call_command("export", f"--workdir={run}", "--format=safetensors", f"--output={tmp_path}/y", "--nomeasure")
    assert (quiet.stderr, quiet.stdout.count("\n")) == ("", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt", "y"]


def test_commands_refuse_what_does_not_go_together(run, tmp_path, call_command):
    def refused(*args, words):
        assert_refused(call_command(*args), words)

    out = f"--output={tmp_path}/x"
    refused("evaluate", f"--workdir={run}", "--model=x.onnx", "--checkpoint=best", words="leave out --checkpoint")
    refused("evaluate", "--model=x.onnx", words="--workdir is missing")
    refused("export", f"--workdir={run}", "--format=torch", "--int8", out, words="--int8 quantises ONNX files")
    refused("export", f"--workdir={run}", "--format=hub", "--with-branches", out, words="leave out --with-branches")
    refused("export", f"--workdir={run}", "--format=onnx", "--license=mit", out, words="set --format=hub")
    refused(
        "export",
        f"--workdir={run}",
        "--format=onnx",
        "--int8",
        "--with-branches",
        out,
        words="leave out --with-branches",
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_for_the_hub_describes_crop_and_filter():
    crop = {"data__crop": "resized", "data__image_size": 32, "data__resize": 36, "shape": (0, 0, 1)}
    config = run_config(data__interpolation="bicubic", **crop)
    described = hub._preprocessing_json(config)
    assert (described["size"], described["resample"]) == ({"shortest_edge": 36}, 3)  # Pillow's number of bicubic
    assert hub._preprocessing_json(run_config(**crop))["resample"] == 2
    folder = run_config(data__name="image_folder", **crop)
    assert "(a folder of images of the person who trained it)" in hub._card(
        folder, None, create("resnet8", 10), "last", "", []
    )


def test_a_folder_for_the_hub_of_images_that_are_not_square(tmp_path):
    names = ["crane", "crane", *"23456789"]  # ImageNet has two classes of one name
    export(make(tmp_path / "run", shape=(8, 12, 1), classes=names), tmp_path / "hub", "hub")
    assert not (tmp_path / "hub/preprocessor_config.json").exists()  # it can't describe the run's crop
    described = json.loads((tmp_path / "hub/config.json").read_text())
    assert (described["id2label"]["1"], "label2id" in described) == ("crane", False)


def test_a_card_has_the_accuracy_of_the_network_that_is_exported():
    """Of networks that teach one another, that is the first one."""
    results = SimpleNamespace(last={"epoch": 2.0, "peer1/top1": 50.0, "peer2/top1": 90.0}, test_images=100)
    assert hub._results(results, "last", [], 10) == "Epoch 2 (last): top-1 50.00 % on 100 test images."


def test_a_folder_for_the_hub_describes_its_run_and_becomes_it_again(call_command, tmp_path):
    datasets.load("digits")
    runs, folder = tmp_path / "runs", tmp_path / "hub"
    trained = call_command("main", "--config=configs/digits.py:tiny", f"--workdir={runs}")
    assert trained.returncode == 0, trained.stderr
    out = call_command("export", f"--workdir={runs}/student", "--format=hub", f"--output={folder}", "--license=cc0-1.0")
    assert out.returncode == 0, out.stderr
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "labels.txt",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config, results = RunDirectory(runs / "student").config(), RunDirectory(runs / "student").results()
    described = json.loads((folder / "config.json").read_text())
    assert described["id2label"] == {str(i): str(i) for i in range(10)}
    assert (described["architecture"], described["image_size"]) == (config.network.arch, [8, 8])
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    assert (pixels["image_mean"], pixels["image_std"]) == ([0.31], [0.38])
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")
    for words in (
        f"top-1 {results.last['top1']:.2f} %",
        f"{results.teacher.arch}, recipe teacher, top-1 {results.teacher.last['top1']:.2f} %",
        shlex.join(["python", "-m", "hsakd_jax.main", *config.command]),
        "| data | digits, 901 training images |" if results.train_images == 901 else "| data | digits, ",
        "## Limits",
        "The names of\nthe classes are in `labels.txt`.",
        "cc0-1.0",
    ):
        assert words in card

    # The commands of the card.
    (command,) = (line for line in card.splitlines() if line.startswith("python -m hsakd_jax.convert"))
    assert command == "python -m hsakd_jax.convert model.safetensors --output=run"
    made = call_command("convert", folder / "model.safetensors", f"--output={tmp_path}/run")
    assert made.returncode == 0, made.stderr
    image = tmp_path / "image.png"
    Image.fromarray(load_test(runs / "student", config).images[0, :, :, 0]).save(image)
    predicted = [
        call_command("predict", f"--workdir={run}", "--format=json", image).stdout
        for run in (runs / "student", tmp_path / "run")
    ]
    assert predicted[0] == predicted[1] != ""
    again = call_command("evaluate", f"--workdir={runs}/student", f"--model={folder}", "--json")
    assert json.loads(again.stdout)["top1"] == pytest.approx(results.last["top1"])
    assert_refused(
        call_command("export", f"--workdir={runs}/student", "--format=hub", f"--output={folder}"),
        "exists: name another",
    )
    shutil.rmtree(folder)
