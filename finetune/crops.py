"""How a picture is cut for training: to which size, and from where. The page shows what the trainer does, by the same
lines."""

from PIL import Image


def fit(width: int, height: int, resolution_px: int, multiple: int) -> tuple[int, int]:
    """Find the size at which a picture is trained: its shape as well as may be, an area of at most resolution squared.

    Of all sizes in multiples, the one that keeps most: the share of the picture that is not cut off, times the area; of
    those that keep the same, the one that cuts off least. No picture is enlarged, only a side of less than one multiple
    is brought up to one.
    """
    aspect, area = width / height, resolution_px**2
    widest, highest = (max(multiple, side // multiple * multiple) for side in (width, height))

    def kept(size: tuple[int, int]) -> tuple[float, float]:
        ratio = size[0] / size[1] / aspect
        share = min(ratio, 1 / ratio)
        return share * size[0] * size[1], share

    sides = range(multiple, min(highest, area // multiple) + 1, multiple)
    sizes = [(area // side // multiple * multiple, side) for side in sides]
    sizes += [(max(multiple, round(side * aspect / multiple) * multiple), side) for side in sides]
    sizes = [(min(widest, wide), side) for wide, side in sizes]
    return max((size for size in sizes if 0 < size[0] * size[1] <= area), key=kept)


def box(width: int, height: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a picture that is trained at a size: from its middle, as large as the size's shape allows.

    Units: pixels of the picture; left, top, right, bottom.
    """
    aspect = size[0] / size[1]
    wide, high = (height * aspect, height) if width > height * aspect else (width, width / aspect)
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture as it is trained at a size: cut and scaled."""
    return image.resize(size, Image.Resampling.LANCZOS, box=box(*image.size, size))
