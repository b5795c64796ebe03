"""A PyTorch checkpoint becomes a run directory like any other."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hsakd_jax.core.console import Console
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import expand, read_names
from hsakd_jax.data.datasets import STREAMED
from hsakd_jax.data.image_files import DECODING
from hsakd_jax.data.image_tree import ImageTree
from hsakd_jax.data.locate import IMAGE_TREE, check_name
from hsakd_jax.data.statistics import NORMALISATION
from hsakd_jax.interop import packages, torch_files, torch_weights
from hsakd_jax.interop.preprocessing import SIDES, Preprocessing, Record, published, read_record
from hsakd_jax.models import architecture, create, profile
from hsakd_jax.runs.checkpoint import Checkpoints
from hsakd_jax.runs.config import ConvertedConfig, typed
from hsakd_jax.runs.directory import RunDirectory


def convert(
    checkpoint: str | Path,
    output: str | Path,
    console: Console,
    *,
    package: str = "",
    arch: str = "",
    data: str = "",
    data_dir: str = "",
    image_size: int = 0,
    resize: int = 0,
    interpolation: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: str = "",
    part: str = "",
) -> None:
    """Makes a run directory of a checkpoint, which `evaluate`, `restore` and a student's config accept.

    Args:
      checkpoint: a file, see `torch_weights.load_torch`; or the name of pretrained weights of `package`. Where no
        argument sets them, the settings are those that an exported file contains, see `preprocessing.Record`.
      output: the run directory to make.
      console: prints the properties that were found.
      package: 'timm' or 'torchvision', see `packages.load`; '' for a file.
      arch: name of the network; '' finds it.
      data: name of its dataset; '' uses the one with that many classes that published networks are trained on.
      data_dir: folder of the data, see `datasets.load`.
      image_size: side of its images; 0 for that of the package or of published results, such as 224 of ImageNet.
      resize: length to which the shorter side of an image is scaled before the central crop. For networks of ImageNet,
        0 is that of the package, or of published results in proportion to `image_size`. For others, 0 does not crop.
      interpolation: see `runs.config.Data`; '' for that of the package or of published results.
      mean: of the normalisation, one number per channel; () uses that of the package, of `data`, or else of CIFAR-100
        or ImageNet.
      std: as `mean`.
      classes: a file with the name of a class in each line; '' uses those of the package, if it has any.
      part: which weights, where the file contains several, see `torch_weights.load_torch`.

    Raises:
      UserError: see `torch_files.read`, `torch_weights.unwrap`, `torch_weights.recognise`, `packages.load`,
        `packages.check` and `runs.config.typed`; nothing has been written then. Or `output` holds something else.
    """
    directory = RunDirectory(output)
    if arch:
        create(arch, 2)  # refuses an unknown name before the file is read
    check_name(data, data_dir)
    weights = _of_package(package, str(checkpoint)) if package else _of_file(checkpoint, part)
    record = weights.record
    found = torch_weights.recognise(weights.tensors, arch or (record.arch if record else ""), weights.label)
    usual_data = _usual_data(found) if found.channels == 3 else ""
    given = Preprocessing(image_size, resize, interpolation, mean, std)
    assumed = [] if weights.usual else _assumed(found, data, usual_data, given)
    data = data or (record.data or "" if record else usual_data)
    _check_classes(data, data_dir, found.num_classes)
    usual = weights.usual or published(found.name, data)
    prepared = _changed(usual, given)
    parameters = _parameters(found, prepared, weights.label)
    crops = bool(resize or (record and record.resize)) or _scales(found, data)
    if crops:
        _check_crop(found.name, data, prepared)
    values = {
        "source": weights.source,
        "sha256": weights.sha256,
        "part": part or None,
        "network": _network(found, prepared.image_size),
        "classes": read_names(classes, found.num_classes) if classes else weights.classes,
        "data": _data(data or None, data_dir or None, crops, prepared),
        "eval_batch": 500,
    }
    flags = "--data, --mean, --std, --image_size, --resize, --interpolation"
    config = typed(ConvertedConfig, values, f"{weights.label} ({flags})")
    variables = torch_weights.to_variables(weights.tensors, found, weights.label)
    if weights.pretrained:
        packages.check(weights.pretrained, found.network(), variables)
    named = bool(arch or record)
    for line in (_describe(config, weights.label, named), *weights.notes, _describe_images(config, assumed)):
        console.line(line)
    directory.acquire(config)
    checkpoints = Checkpoints(directory.checkpoints, config=config)
    if not checkpoints.steps():
        checkpoints.save(0, variables)
    checkpoints.close()
    console.line(f"{directory.path}: {parameters:,} parameters")


class _Weights(NamedTuple):
    label: str  # its name in lines
    source: str
    sha256: str
    tensors: torch_files.StateDict
    notes: tuple[str, ...] = ()
    classes: Sequence[str] = ()
    pretrained: packages.Pretrained | None = None
    record: Record | None = None

    @property
    def usual(self) -> Preprocessing | None:
        """The preprocessing that comes with the weights."""
        known = self.pretrained or self.record
        return known.preprocessing if known else None


def _of_file(path: str | Path, part: str) -> _Weights:
    content = torch_files.read(path, part)
    tensors, foreign = torch_weights.unwrap(content, str(path), part)
    notes: list[str] = []
    if foreign:
        notes.append(f"{len(foreign)} tensors that are not the network's are left out: {torch_files.listed(foreign)}")
    if content.others:
        others = torch_files.listed(f"--part={one}" for one in content.others)
        notes.append(f"the weights are those of {content.section}; to use others of the file, set {others}")
    record = None
    if content.record:
        record = read_record(content.record)
        if record is None:
            notes.append("the settings of its run can't be read, and are not used")
    classes = record.classes if record else ()
    return _Weights(str(path), Path(path).name, _sha256(path), tensors, tuple(notes), classes, record=record)


def _of_package(package: str, name: str) -> _Weights:
    found = packages.load(package, name)
    return _Weights(found.name, found.name, found.sha256(), found.tensors, (), tuple(found.classes), found)


def _describe(config: ConvertedConfig, label: str, named: bool) -> str:
    network = config.network
    branches = "with" if network.branches else "without"
    how = "" if named else " (found from its tensors)"
    return f"{label}: {network.arch}, {branches} branches, {network.num_classes} classes{how}"


def _assumed(found: torch_weights.Found, data: str, usual_data: str, given: Preprocessing) -> list[str]:
    """The flags of the settings that neither the user nor the named dataset sets."""
    from_data, scales = data in NORMALISATION, _scales(found, data)
    known = {
        "data": data or not usual_data,
        "mean": given.mean or from_data,
        "std": given.std or from_data,
        "image_size": given.image_size or (data in SIDES and not scales),
        "resize": given.resize or not scales,
        "interpolation": given.interpolation or not scales,
    }
    return [flag for flag, value in known.items() if not value]


def _scales(found: torch_weights.Found, data: str) -> bool:
    """Whether images are scaled where nothing sets it: for networks of ImageNet, and images of many sizes."""
    return architecture(found.name).for_imagenet or data in STREAMED


def _describe_images(config: ConvertedConfig, assumed: Sequence[str]) -> str:
    height, width, channels = config.network.image_shape
    data = config.data
    scaled = f"the middle of images scaled to {data.resize} ({data.interpolation}), " if data.crop == "resized" else ""
    return (
        f"images of {height}x{width}x{channels}, {scaled}mean {list(data.mean)}, std {list(data.std)}, "
        f"data {data.name or 'not known (--data)'}" + (f" (assumed: {', '.join(assumed)})" if assumed else "")
    )


def _usual_data(found: torch_weights.Found) -> str:
    """The dataset with that many classes that published networks are trained on; '' for none."""
    big = architecture(found.name).for_imagenet
    return ({1000: "imagenet2012"} if big else {100: "cifar100", 10: "cifar10"}).get(found.num_classes, "")


def _check_classes(data: str, folder: str, num_classes: int) -> None:
    if data in ("image_folder", IMAGE_TREE) and folder:
        expected = len(ImageTree(folder).class_names)
        if expected != num_classes:
            raise UserError(
                f"the network has {num_classes} classes and {folder} has {expected}: leave --data and --data_dir out; "
                "a run that starts from this one, by --config.teacher.init, makes a new last layer for other classes"
            )
    expected = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet2012": 1000}.get(data, num_classes)
    if expected != num_classes:
        raise UserError(f"the network has {num_classes} classes and {data} has {expected}: check --data")


def _check_crop(arch: str, data: str, prepared: Preprocessing) -> None:
    if data == "image_folder" and prepared.resize > prepared.image_size:
        raise UserError(
            f"{arch} uses the middle of images scaled to {prepared.resize}, and an image_folder has whole squares: "
            f"set --data={IMAGE_TREE}, or --resize={prepared.image_size}"
        )


def _changed(usual: Preprocessing, given: Preprocessing) -> Preprocessing:
    """The usual preprocessing with the user's values, where they are not 0, '' or ().

    Of images of another size, the crop is as great a part of the scaled image as before.

    Raises:
      UserError: mean without std, or std without mean.
    """
    if bool(given.mean) != bool(given.std):
        raise UserError("mean and std belong together: set both, --mean and --std, or neither")
    side = given.image_size or usual.image_size
    in_proportion = usual._replace(image_size=side, resize=round(side * usual.resize / usual.image_size))
    return in_proportion._replace(**{key: value for key, value in given._asdict().items() if value})


def _parameters(found: torch_weights.Found, prepared: Preprocessing, label: str) -> int:
    """The number of parameters of a network that takes images prepared so.

    Raises:
      UserError: it can't take them.
    """
    if len(prepared.mean) not in (1, found.channels):
        raise UserError(
            f"{label} takes images of {found.channels} channels: set --data, such as --data=digits of 1, or "
            f"--mean and --std with {found.channels} numbers"
        )
    try:
        image_shape = (prepared.image_size, prepared.image_size, found.channels)
        return profile.totals(found.network(), image_shape)["parameters"]
    except ValueError as error:
        raise UserError(str(error)) from error


def _sha256(path: str | Path) -> str:
    with expand(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _network(found: torch_weights.Found, side: int) -> dict[str, Any]:
    return {
        "arch": found.name,
        "dtype": "float32",
        "branches": found.branches,
        "peers": (),
        "num_classes": found.num_classes,
        "image_shape": (side, side, found.channels),
        "projector": None,
    }


def _data(name: str | None, folder: str | None, crops: bool, prepared: Preprocessing) -> dict[str, Any]:
    """The section 'data': images have the network's size, or are scaled and cropped."""
    return {
        "name": name,
        "dir": folder,
        "image_size": prepared.image_size if crops or name == "image_folder" else None,
        "resize": prepared.resize if crops else None,
        "interpolation": prepared.interpolation,
        "crop": "resized" if crops else "pad",
        "pad": 0,
        "flip": False,
        "fraction": 1.0,
        "validation": 0.0,
        "decoding": DECODING,
        "max_pixels": None,
        "mean": prepared.mean,
        "std": prepared.std,
    }
