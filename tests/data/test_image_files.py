"""From files to pixels: every kind of image, and what is refused."""

import io
import os

import msgspec
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from run_configs import run_config

from hsakd_jax.core.errors import UserError
from hsakd_jax.data import image_files, tfds_reader
from hsakd_jax.data.image_files import centre_crop, decode, fit, open_image, read_file, unreadable
from hsakd_jax.runs.directory import RunDirectory

SIZE = (6, 4)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(colour, mode="RGB", size=SIZE):
    return Image.new(mode, size, colour)


def sixteen(value, dtype=np.uint16):
    return Image.fromarray(np.full(SIZE[::-1], value, dtype))


def tiff(image, **tags):
    """A TIFF with other tags than Pillow writes: `_262=0`."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[int(tag[1:])] = value
    return encoded(image, "TIFF", tiffinfo=directory)


KINDS = {
    "grey": (encoded(flat(77, "L")), (77, 77, 77)),
    "grey of 16 bits": (encoded(sixteen(200 * 257)), (200, 200, 200)),
    "grey of 16 bits, white": (encoded(sixteen(65535)), (255, 255, 255)),
    "grey TIFF of 16 bits": (encoded(sixteen(200 * 257), "TIFF"), (200, 200, 200)),
    "PGM of 16 bits": (encoded(sixteen(200 * 257, np.int32), "PPM"), (200, 200, 200)),
    "one bit": (encoded(flat(1, "1")), (255, 255, 255)),
    "transparent": (encoded(flat((10, 20, 30, 0), "RGBA")), (255, 255, 255)),
    "half transparent": (encoded(flat((0, 0, 0, 128), "RGBA")), (127, 127, 127)),
    "transparent WebP": (encoded(flat((10, 20, 30, 0), "RGBA"), "WEBP", lossless=True), (255, 255, 255)),
    "transparent TIFF": (encoded(flat((10, 20, 30, 0), "RGBA"), "TIFF"), (255, 255, 255)),
    "transparent grey": (encoded(flat((77, 0), "LA")), (255, 255, 255)),
    "transparent colour": (encoded(flat((10, 20, 30)), transparency=(10, 20, 30)), (255, 255, 255)),
    "palette": (encoded(flat((10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)), (10, 200, 30)),
    "palette GIF": (encoded(flat((10, 200, 30)), "GIF"), (10, 200, 30)),
    "transparent palette": (encoded(flat(0, "P"), transparency=0), (255, 255, 255)),
    "CMYK JPEG": (encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG"), (255, 0, 0)),
    "CMYK TIFF": (encoded(flat((0, 255, 255, 0), "CMYK"), "TIFF"), (255, 0, 0)),
    "JPEG of several": (
        encoded(flat((200, 0, 0)), "MPO", save_all=True, append_images=[flat((0, 200, 0))], quality=95),
        (200, 0, 0),
    ),
    "transparent grey of 16 bits": (encoded(sixteen(9 * 257), transparency=9 * 257), (255, 255, 255)),
    "BMP": (encoded(flat((10, 200, 30)), "BMP"), (10, 200, 30)),
}
REFUSED = {
    "near infrared, unspecified": (encoded(flat((10, 20, 30, 40), "RGBX"), "TIFF"), "4 bands"),
    # Pillow takes the fourth band for transparency. The tag that could say so is renamed.
    "near infrared, not said": (
        encoded(flat((10, 20, 30, 40), "RGBA"), "TIFF").replace(b"\x52\x01\x03\x00", b"\x51\x01\x03\x00"),
        "4 bands",
    ),
    "floating point": (encoded(flat(0.5, "F"), "TIFF"), "floating-point"),
    "floating-point PPM": (encoded(flat(0.5, "F"), "PPM"), "floating-point"),
    "32 bits": (encoded(sixteen(70000, np.int32), "TIFF"), "32-bit"),
    "inverted": (tiff(sixteen(7), _262=0), "inverted"),
    "no image": (b"no image", "of an unknown kind, or damaged"),
    "other format": (encoded(flat((10, 20, 30)), "EPS"), "of an unknown kind, or damaged"),
    "cut": (encoded(Image.effect_noise((99, 99), 50), "JPEG")[:999], "truncated"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_the_same_rgb(kind):
    content, colour = KINDS[kind]
    tolerance = 3 if "JPEG" in kind else 0
    for image in (fit(content, 3, 2), centre_crop(content, 3, 4)):
        assert image.mode == "RGB"
        assert abs(np.asarray(image, int) - colour).max() <= tolerance


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_certain_meaning_is_refused(kind):
    content, reason = REFUSED[kind]
    for read in (lambda: fit(content, 3, 2), lambda: centre_crop(content, 3, 4)):
        with pytest.raises((OSError, ValueError)) as error:
            read()
        line = str(unreadable("a/b.tif", error.value))
        assert line.startswith("a/b.tif can't be read as an image (")
        assert reason in line
        assert line.endswith("): fix, replace or delete it")


def test_twelve_bits_use_their_own_range(monkeypatch):
    content = encoded(sixteen(4095), "TIFF")
    with open_image(content) as image:
        image.tag_v2[258] = (12,)
        assert decode(image).getpixel((0, 0)) == 255


def test_four_channels_of_a_dataset_are_its_own():
    content = encoded(flat((10, 20, 30, 0), "RGBA"))
    assert tfds_reader._pixels(content, "RGBA")[0, 0].tolist() == [10, 20, 30, 0]
    assert tfds_reader._pixels(content, "RGB")[0, 0].tolist() == [255, 255, 255]


def test_a_run_names_its_rule(tmp_path):
    config = msgspec.to_builtins(run_config())
    assert config["data"]["decoding"] == image_files.DECODING
    config["data"]["decoding"] = "upright rgb 2"
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(UserError, match=r"config.json is not valid: data.decoding: Invalid enum value 'upright rgb 2'"):
        RunDirectory(tmp_path).config()


def test_suffixes_are_those_of_the_decoders():
    kinds = Image.registered_extensions()
    expected = {suffix for suffix, kind in kinds.items() if kind in (*image_files.FORMATS, "MPO")}
    assert expected - {".pfm"} == image_files.EXTENSIONS


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("fifo.jpg", "zero.jpg", "."):
        with pytest.raises(OSError, match="not a regular file"):
            read_file(tmp_path / name)
    (tmp_path / "large.jpg").write_bytes(b"12345")
    monkeypatch.setattr(image_files, "MAX_BYTES", 4)
    with pytest.raises(image_files.TooLargeError, match="has more than 4 bytes: scale the image down"):
        read_file(tmp_path / "large.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as image_files sets; pytest begins anew
@pytest.mark.parametrize(("limit", "fits"), [(0, False), (440, False), (441, True), (10**6, True)])
def test_an_image_above_the_limit(monkeypatch, limit, fits):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 110)  # Pillow refuses more than twice as many
    content = encoded(flat((10, 20, 30), size=(21, 21)))
    monkeypatch.setattr(image_files, "MAX_PIXELS", 220)
    if fits:
        assert fit(content, 2, 2, limit).getpixel((0, 0)) == (10, 20, 30)
        return
    with pytest.raises(image_files.TooLargeError, match=rf"has more than {limit or 220} pixels: .*max_pixels=PIXELS"):
        fit(content, 2, 2, limit)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255  # the corner that says how the image was turned
    content = encoded(Image.fromarray(pixels), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert image_files.size_of(content) == upright.size == ((32, 16) if orientation < 5 else (16, 32))
    found = decode(open_image(content))
    assert found.size == upright.size
    assert abs(np.asarray(found, int) - np.asarray(upright, int)).max() < 8
