"""Attacks by files of a stranger: each writes them and returns the command that meets them.

The code in them, if it ran, would create the file CANARY.
"""

import io
import json
import os
import pickle
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Line = tuple[object, ...]


class _Touch:
    """Unpickled, it creates a file."""

    def __init__(self, canary: Path):
        self._canary = canary

    def __reduce__(self):
        return (os.system, (f"touch {self._canary}",))


def a_pickle(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """Code in a checkpoint, in PyTorch's old form, in its zip, or under another suffix."""
    content = pickle.dumps({"state_dict": {"fc.weight": _Touch(canary)}}, protocol=draw.choice([0, 2, 4]))
    file = folder / draw.choice(["net.pt", "net.pth", "net.safetensors", "net.bin"])
    return _checkpoint(draw, file, content)


def a_nested_pickle(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """Lists in lists in lists, a megabyte of them, raw or in PyTorch's zip."""
    depth = draw.choice([10**4, 10**6])
    content = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    file = folder / "net.pt"
    return _checkpoint(draw, file, content)


def _checkpoint(draw: random.Random, file: Path, content: bytes) -> Line:
    """Writes a pickle raw, or in PyTorch's zip."""
    if draw.random() < 0.5:
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("net/data.pkl", content)
            archive.writestr("net/version", "3")
    return ("convert", file, f"--output={file.parent}/out")


def a_bomb(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """A small zip that becomes gigabytes."""
    file = folder / "net.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("net/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(draw.choice([64, 512])):
                entry.write(bytes(2**22))
        archive.writestr("net/version", "3")
    return ("convert", file, f"--output={folder}/out")


def a_header(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """A safetensors header that lies about its length, its shapes, or is deep."""
    header: Any = draw.choice(
        [
            {"fc.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}},
            {"fc.weight": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 2**62]}},
            {"\x1b[31mfc": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        ]
    )
    text = draw.choice([json.dumps(header), "[" * 10**5]).encode()
    file = folder / "net.safetensors"
    file.write_bytes(
        draw.choice([len(text), 2**60]).to_bytes(8, "little") + b"{" * (text[:1] == b"[") + text + bytes(8)
    )
    return ("convert", file, f"--output={folder}/out")


def _config(workdir: Path, change: Callable[[Any], None]) -> None:
    """Changes the config of a run, and forges its checkpoints, so that nothing contradicts the change."""
    path = workdir / "config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    for path in workdir.glob("checkpoints/*/manifest.json"):
        content = json.dumps({**json.loads(path.read_text())["manifest"], "config": tree}).encode()
        path.write_bytes(b'{"crc32":%d,"manifest":%s}' % (zlib.crc32(content), content))


def a_config_module(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """A data set named like a Python file."""
    workdir = _copy(whole, folder)
    evil = folder / "evil.py"
    evil.write_text(f"open({str(canary)!r}, 'w')\n\ndef get_config(recipe=''):\n    return {{}}\n")
    name = draw.choice([str(evil), str(evil.with_suffix("")), "../run/evil", "evil"])
    _config(workdir, lambda tree: tree["data"].update(name=name))
    return _reader(draw, workdir, folder)


def a_feature_class(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """A data set whose features.json names a module that is there."""
    workdir = _copy(whole, folder)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    version = folder / "data" / "digits" / "1.0.0"
    version.mkdir(parents=True)
    kind = {draw.choice(["pythonClassName", "python_class_name", "type"]): "evil.Feature"}
    inside = draw.choice([kind, {"featuresDict": {"features": {"image": kind}}}])
    (version / "features.json").write_text(json.dumps(inside))
    (version / "dataset_info.json").write_text(json.dumps({"name": "digits", "version": "1.0.0"}))
    _config(workdir, lambda tree: tree["data"].update(dir=str(folder / "data")))
    return _reader(draw, workdir, folder)


def a_deep_file(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """JSON that is nested without end, or not JSON at all, in a file of a run."""
    workdir = _copy(whole, folder)
    name = draw.choice(
        ["config.json", "results.json", "metrics.jsonl", ".identity", "*/*/_METADATA", "*/*/*/_METADATA"]
    )
    files = [*workdir.glob(name)] or [workdir / "config.json"]
    content = draw.choice(
        [b"[" * 10**6, b'{"a":' * 10**5, b"\x00" * 1000, b"\xff\xfe", b"", b"null", b"[]", b"{}", b"1e999"]
    )
    draw.choice(files).write_bytes(content)
    return _reader(draw, workdir, folder)


def a_size(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """A config whose sizes ask for all memory."""
    workdir = _copy(whole, folder)
    key, value = draw.choice(
        [
            ("network.image_shape", [65536, 65536, 1024]),
            ("network.image_shape", [1, 1, 1]),
            ("network.num_classes", 2**24),
            ("eval_batch", 2**31 - 1),
            ("eval_batch", 10**6),
            ("data.image_size", 65536),
            ("data.resize", 65536),
            ("network.arch", "resnet152"),
        ]
    )
    *sections, last = key.split(".")

    def change(tree):
        for section in sections:
            tree = tree[section]
        tree[last] = value

    _config(workdir, change)
    return _reader(draw, workdir, folder)


def a_name(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """Names that a terminal, a page or a template would obey."""
    workdir = _copy(whole, folder)
    bad = draw.choice(
        ["\x1b[2J\x1b[31m", "\x1b]0;title\x07", "\u202e", "<script>alert(1)</script>", "{{ 7 * 7 }}", "a\nerror: b"]
    )
    place = draw.choice(["classes", "recipe", "command", "arch"])

    def change(tree):
        if place == "classes":
            tree["classes"] = [f"{bad}{i}" for i in range(len(tree["classes"]))]
        elif place == "command":
            tree["command"] = [bad]
        elif place == "arch":
            tree["network"]["arch"] = bad
        else:
            tree["recipe"] = bad

    _config(workdir, change)
    if draw.random() < 0.5:
        return _reader(draw, workdir, folder)
    Image.new("L", (8, 8)).save(folder / "one.png")
    return ("predict", f"--workdir={workdir}", folder / "one.png")


def an_image(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """Something else than an image among the images."""
    images = folder / "images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "good.png")
    kind = draw.choice(["eps", "fifo", "zero", "loop", "large", "name", "text", "cut"])
    bad = images / "bad.jpg"
    if kind == "eps":
        bad.write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {canary}) (w) file\n%%EOF\n")
    elif kind == "fifo":
        os.mkfifo(bad)
    elif kind == "zero":
        bad.symlink_to("/dev/zero")
    elif kind == "loop":
        bad.symlink_to(bad)
        (images / "round").symlink_to(images)
    elif kind == "large":
        Image.new("1", (20000, 20000)).save(images / "bad.png")
    elif kind == "name":
        (images / "\x1b[31m\u202e.png").write_bytes((images / "good.png").read_bytes())
    elif kind == "text":
        bad.write_text("no image")
    else:
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 9).save(buffer, "PNG")
        bad.write_bytes(buffer.getvalue()[: draw.randrange(200)])
    return ("predict", f"--workdir={whole}", images)


def a_link(whole: Path, draw: random.Random, folder: Path, canary: Path) -> Line:
    """Links where files of a run should be."""
    workdir = _copy(whole, folder)
    names = ["config.json", "results.json", "metrics.jsonl", ".identity", "checkpoints", "checkpoints/*/manifest.json"]
    path = draw.choice([*workdir.glob(draw.choice(names)), workdir / "config.json"])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    target = draw.choice(["/dev/zero", "/etc/passwd", str(path), str(workdir), "/nowhere"])
    if draw.random() < 0.2 and path.name != "checkpoints":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    return _reader(draw, workdir, folder)


def _copy(whole: Path, folder: Path) -> Path:
    return Path(shutil.copytree(whole, folder / "run"))


def _reader(draw: random.Random, workdir: Path, folder: Path) -> Line:
    """Any command that reads a run."""
    return draw.choice(
        [
            ("evaluate", f"--workdir={workdir}"),
            ("report", workdir, f"--output={folder}/report.html"),
            ("results", workdir),
            ("export", f"--workdir={workdir}", "--format=safetensors", f"--output={folder}/out.safetensors"),
        ]
    )


ATTACKS: tuple[Callable[[Path, random.Random, Path, Path], Line], ...] = (
    a_pickle, a_nested_pickle, a_bomb, a_header, a_config_module, a_feature_class, a_deep_file, a_size, a_name,
    an_image, a_link,
)  # fmt: skip
