"""From image files to pixels: the one way that training, evaluation and prediction share.

Its rule, `DECODING`: images are upright by their EXIF orientation, and transparent parts are white. They have 8 bits
per channel, to which 16 bits are scaled, and are RGB, or grey for a network of grey images. Files of other kinds are
refused.
"""

import contextlib
import io
import math
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from hsakd_jax.core.errors import UserError

# Name of the rule above. A run records it, so a change of the rule needs another name.
DECODING = "upright rgb 1"
# The decoders that may open a file. Pillow has others, and one of them starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# The suffixes that Pillow registers for `FORMATS` and for JPEGs with several images, except .pfm: floating-point maps.
EXTENSIONS = {
    ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
}  # fmt: skip
# How images are scaled, see `runs.config.Data`. Pillow's filters of these names, which smooth where an image shrinks.
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pillow warns of images with half as many pixels and refuses those with more, unless its limit is raised.
MAX_PIXELS = 178_956_970
MAX_BYTES = 2**31  # of a file
# Pixels above which images are decoded one at a time: threads would take gigabytes each.
_ALONE = 2**24
_LARGE = threading.Lock()
# A large JPEG is decoded at no less than this many times the needed size. A photograph of 12 megapixels then needs a
# tenth of the time. The result differs from a full decoding by less than one grey level of 255 in the mean.
_FINER = 4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_JPEG = ("JPEG", "MPO")
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # bands by the photometric interpretation of a TIFF
_ALPHA = ((1,), (2,))

# A few photographs of ImageNet have broken EXIF data, of which nothing is used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is the limit


class UnreadableImageError(UserError):
    """An image file that is damaged, of an unknown kind, or too large."""


class TooLargeError(ValueError):
    """An image of more than `data.max_pixels`, or of more than `MAX_PIXELS` when it is scaled, or too large a file."""


def fit(
    encoded: bytes,
    width: int,
    height: int,
    max_pixels: int = 0,
    margin: float = 0.0,
    interpolation: str = "bilinear",
) -> Image.Image:
    """The greatest part in the middle of an image with this ratio of sides, scaled: RGB.

    Args:
      encoded: content of the file.
      width: of the result.
      height: of the result.
      max_pixels: see `open_image`.
      margin: fraction of each side that is cut off both of its ends first, 0 <= margin < 0.5.
      interpolation: a key of `FILTERS`.

    Raises:
      Exception: of any kind, from the decoder; see `unreadable`.
    """
    finer = _FINER / (1 - 2 * margin)
    with open_image(encoded, max_pixels) as image:
        image = decode(image, (math.ceil(finer * width), math.ceil(finer * height)))
        return rgb(ImageOps.fit(image, (width, height), FILTERS[interpolation], bleed=margin))


def centre_crop(
    encoded: bytes, size: int, resize: int, max_pixels: int = 0, interpolation: str = "bilinear"
) -> Image.Image:
    """The middle of an image whose shorter side is scaled to `resize`: RGB, `size` x `size` pixels.

    Args:
      encoded: content of the file.
      size: side of the result.
      resize: at least `size`.
      max_pixels: see `open_image`.
      interpolation: a key of `FILTERS`.

    Raises:
      Exception: of any kind, from the decoder; see `unreadable`.
    """
    with open_image(encoded, max_pixels) as image:
        image = decode(image)
    short, long = min(image.size), int(resize * max(image.size) / min(image.size))
    width, height = (resize if side == short else long for side in image.size)
    if (pixels := width * height) > MAX_PIXELS:
        raise TooLargeError(f"has {pixels:,} pixels when its shorter side is scaled to {resize}: cut off its ends")
    with _LARGE if pixels > _ALONE else contextlib.nullcontext():
        image = image.resize((width, height), FILTERS[interpolation])
    left, top = (round((side - size) / 2) for side in image.size)
    return rgb(image.crop((left, top, left + size, top + size)))


def read_file(path: str | Path) -> bytes:
    """The content of an image file; a device or a FIFO is not opened.

    Raises:
      OSError: the file can't be read, or is not a regular one.
      TooLargeError: it has more than `MAX_BYTES`.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    if found.st_size > MAX_BYTES:
        raise TooLargeError(f"has more than {MAX_BYTES:,} bytes: scale the image down or remove it")
    return Path(path).read_bytes()


def open_image(encoded: bytes, max_pixels: int = 0) -> Image.Image:
    """Opens an image by the decoders of `FORMATS` only; `decode` reads its pixels.

    Args:
      encoded: content of the file.
      max_pixels: the greatest number of pixels that is read; 0 for `MAX_PIXELS`.

    Raises:
      OSError: no image of these formats.
      TooLargeError: it has more pixels.
    """
    limit = max_pixels or MAX_PIXELS
    if max_pixels and Image.MAX_IMAGE_PIXELS and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    with contextlib.suppress(Image.DecompressionBombError):
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height <= limit:
            return image
    raise TooLargeError(
        f"has more than {limit:,} pixels: scale the image down, or train with --config.data.max_pixels=PIXELS"
    )


def size_of(encoded: bytes, max_pixels: int = 0) -> tuple[int, int]:
    """Width and height of an image, upright.

    Raises:
      Exception: of any kind, from the decoder; see `unreadable`.
    """
    with open_image(encoded, max_pixels) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image."""
    width, height = image.size
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def decode(image: Image.Image, least: tuple[int, int] | None = None) -> Image.Image:
    """The pixels of an opened image by the rule of this module: upright, of mode 'L' or 'RGB'.

    Args:
      image: see `open_image`.
      least: width and height that suffice for the upright image. A larger JPEG is decoded at a half, a quarter or an
        eighth, not below them. None decodes it in full.

    Raises:
      ValueError: an image whose bands or range of values have no certain meaning.
      Exception: of any kind, for a damaged file.
    """
    if least and image.format in _JPEG:  # no other decoder has a draft
        image.draft(None, (least[1], least[0]) if _orientation(image) in _SIDEWAYS else least)
    large = image.width * image.height > _ALONE
    with _LARGE if large else contextlib.nullcontext():
        orientation = _orientation(image)  # which decodes all but a JPEG
        image.load()
        image = _eight_bits(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def rgb(image: Image.Image) -> Image.Image:
    """An image of mode 'L' or 'RGB' as 'RGB'; one that is RGB is not copied."""
    return image if image.mode == "RGB" else image.convert("RGB")


def unreadable(name: str, error: Exception) -> UnreadableImageError:
    """The line about an image that can't be read: its name, the reason, the remedy."""
    if isinstance(error, TooLargeError):
        return UnreadableImageError(f"{name} {error}")
    if isinstance(error, FileNotFoundError):
        return UnreadableImageError(f"{name} is no file: check the path")
    if isinstance(error, UnidentifiedImageError):
        reason = "of an unknown kind, or damaged"
    else:
        reason = getattr(error, "strerror", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    return UnreadableImageError(f"{name} can't be read as an image ({reason}): fix, replace or delete it")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation: 1 upright, 2 to 8 as in `_TURNS`."""
    if image.format not in _JPEG:
        image.load()  # Pillow finds the EXIF data of a PNG behind its pixels, and turns a TIFF itself
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data does no harm
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it on a white page, of mode 'L' or 'RGB'."""
    if isinstance(image, TiffImageFile):
        _check_tiff(image)
    if image.mode == "F":
        raise ValueError("floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip
        greatest = 2 ** _depth(image) - 1
        values = np.asarray(image).clip(0, greatest).astype(np.uint32)
        values = np.where(values == image.info.get("transparency", -1), greatest, values)
        return Image.fromarray((values * 255 // greatest).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else rgb(image)


def _depth(image: Image.Image) -> int:
    """Bits per pixel of an image of mode 'I' or 'I;16'."""
    return image.tag_v2[ExifTags.Base.BitsPerSample][0] if isinstance(image, TiffImageFile) else 16


def _check_tiff(image: TiffImageFile) -> None:
    """Refuses bands and values whose meaning Pillow would guess.

    Raises:
      ValueError: more bands than the colours have, except one of transparency; or signed, 32-bit or inverted values.
    """
    tags = image.tag_v2
    kind: int = tags.get(ExifTags.Base.PhotometricInterpretation, 0)
    bands: int = tags.get(ExifTags.Base.SamplesPerPixel, 1)
    transparent = tuple(tags.get(ExifTags.Base.ExtraSamples, ())) in _ALPHA
    if bands != _COLOURS.get(kind, bands) + transparent:
        raise ValueError(f"{bands} bands, of which not all are marked as colours or transparency")
    if image.mode == "I" or (image.mode.startswith("I") and kind == 0):
        raise ValueError("signed, 32-bit or inverted numbers, whose range is not known")
