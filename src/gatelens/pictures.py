"""Pictures: one reader for every kind of input.

What is read is upright RGB of 8 bits: a photo is turned as its EXIF data says, transparency becomes white, of an
animation the first frame is taken, CMYK is converted without a colour profile. Grey of 16 bits is scaled
(65535 becomes 255); of coloured pictures of 16 bits a channel Pillow keeps the high byte. Pixels of 32 bits say
nothing of their range: they are read like an array's, or refused.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor, bfloat16

from gatelens.errors import InputError

ImageLike = Image.Image | str | Path | bytes | np.ndarray | Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "I", "F", *_GREY_OF_16_BITS)


def load_image(image: ImageLike, where: str = "image") -> Image.Image:
    """An RGB picture, as the module says.

    Args:
        image: a PIL image, a path, the bytes of a file in one of :data:`FORMATS`, or an array [H,W] or [H,W,3|4]
            of 0..255 or, if float, of 0..1 (bool: of False and True). A tensor may also be [3|4,H,W].
        where: what error messages call it.

    Raises:
        InputError: it cannot be read, or not correctly; names the file or argument. A grey PNG of 2 or 4 bits with a
            transparent grey can only be told as long as Pillow has not decoded it: give its path.
    """
    if isinstance(image, (np.ndarray, Tensor)):
        return _rgb(_from_array(image, where))
    opened = _opened(image, where)
    try:
        return _rgb(opened)
    except ValueError as error:  # Pillow's too, for modes that it cannot convert
        raise _unreadable(image, where, error) from error


def load_mask(
    image: Image.Image | str | Path | bytes, where: str = "mask"
) -> Bool[np.ndarray, "height width"]:
    """Where a mask is neither black nor fully transparent, turned as its EXIF data says.

    Raises:
        InputError: it cannot be read.
    """
    opened = _opened(image, where)
    try:
        if opened.mode in _GREY and not opened.has_transparency_data:
            return np.asarray(opened) != 0  # as it lies: scaled to 8 bits, a small number would become black
        values = np.asarray(opened.convert("RGBA"))
    except ValueError as error:
        raise _unreadable(image, where, error) from error
    return values[..., :3].any(axis=2) & (values[..., 3] > 0)


def _opened(image: Image.Image | str | Path | bytes, where: str) -> Image.Image:
    """The picture decoded and upright, in the mode it is stored in."""
    if not isinstance(image, (Image.Image, str, Path, bytes)):
        raise InputError(f"{where} is a {type(image).__name__}: give a PIL image, a path or an array")
    try:
        if isinstance(image, Image.Image):
            _check_samples(image)
            return _upright(image)
        if not isinstance(image, bytes) and not Path(image).is_file():
            if Path(image).exists():
                raise ValueError("not a file")
            raise InputError(f"{where}: no such file '{image}': check the path")
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]  # what this Pillow was built with
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        with Image.open(io.BytesIO(content), formats=known) as opened:
            _check_samples(opened)
            upright = _upright(opened)
            decoded = upright.copy()  # which holds no file
            decoded.format = upright.format
            return decoded
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any kind on damaged files
        raise _unreadable(image, where, error) from error


def _unreadable(image: Image.Image | str | Path | bytes, where: str, error: Exception) -> InputError:
    """The error of a picture that cannot be read."""
    named = f"'{image}'" if isinstance(image, (str, Path)) else "it"
    reason, fix = " ".join(str(error).split()) or type(error).__name__, "replace the file"
    if isinstance(error, UnidentifiedImageError):
        reason, fix = f"none of {', '.join(FORMATS)}, or damaged", "convert or replace it"
    elif isinstance(error, Image.DecompressionBombError):
        reason, fix = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels", "make it smaller"
    return InputError(f"{where}: {named} is not a readable picture ({reason}): {fix}")


def _check_samples(opened: Image.Image) -> None:
    """Corrects or refuses, before decoding, modes that Pillow decodes to numbers with another meaning."""
    key = opened.info.get("transparency")
    tile = getattr(opened, "tile", None)  # how a file's samples lie, until they are decoded
    if opened.format == "PNG" and isinstance(key, int) and tile:
        # Pillow spreads grey of 2 and 4 bits to 0..255, and leaves the transparent one's number as it was.
        opened.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(str(tile[0][3]), 1)
    if isinstance(key, tuple) and max(key) > 255:
        raise ValueError("a transparent colour of 16 bits")
    tags = getattr(opened, "tag_v2", {})
    if opened.mode in ("I", "F", *_GREY_OF_16_BITS):
        if tags.get(262) == 0:
            raise ValueError("a TIFF of more than 8 bits with white as 0")
        if opened.mode in _GREY_OF_16_BITS and tags.get(258, (16,)) != (16,):
            raise ValueError(f"a TIFF of {tags[258][0]} bits")


def _upright(image: Image.Image) -> Image.Image:
    if isinstance(image, ImageFile.ImageFile):
        # Pillow maps a file that it knows by name, and takes the rows of a turned TIFF for its columns.
        file, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = file
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing, and viewers show such a photo as it lies
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    # without what says how to turn it, or it would be turned once more when it is read again
    turned.info = {name: value for name, value in image.info.items() if name == "transparency"}
    turned.format = image.format
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB on white."""
    if min(image.size) < 1:
        raise ValueError(f"empty, {image.size[0]}x{image.size[1]} pixels")
    if image.mode in _GREY_OF_16_BITS or (image.mode == "I" and image.format == "PPM"):
        image = _scaled(image)
    elif image.mode in ("I", "F"):
        image = _from_array(np.asarray(image), f"mode {image.mode}")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, the transparent one as white."""
    values = np.asarray(image)
    grey = np.round(values / 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


def _from_array(image: np.ndarray | Tensor, where: str) -> Image.Image:
    try:
        array = _numpy(image) if isinstance(image, Tensor) else image
    except (RuntimeError, TypeError) as error:  # a tensor without numbers, such as one on the device meta
        raise InputError(f"{where} cannot be read as an array ({' '.join(str(error).split())})") from error
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[0] in channels:
        if isinstance(image, Tensor) and array.shape[2] in channels:
            raise InputError(
                f"{where} has shape {array.shape}, with channels first or last: give a PIL image"
            )
        if array.shape[2] not in channels:
            array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in channels) or 0 in array.shape:
        raise InputError(f"{where} has shape {array.shape}: give [height, width] or [height, width, 3]")
    if array.dtype.kind not in "buif":
        raise InputError(f"{where} holds values of type {array.dtype}: give numbers of 0..255")
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds values that are not finite: give numbers of 0..255")
    if (
        array.dtype.kind == "f" and 1 < array.max() < 2
    ):  # resized or normalised beyond 1: as 0..255 it were black
        raise InputError(f"{where} holds floats up to {array.max():.6g}: give 0..1 (clip them) or 0..255")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and array.max() <= 1):
        array = array * 255.0
    if array.min() < 0 or array.max() > 255:
        raise InputError(f"{where} holds values outside 0..255: give pixels, not normalised values")
    return Image.fromarray(np.round(array).astype(np.uint8))


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == bfloat16 else tensor).numpy()


def thumbnail(picture: Image.Image, side: int = 96) -> str:
    """The picture in HTML, with a maximum number of pixels per side."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img src='data:image/png;base64,{data}' style='margin:2px'>"
