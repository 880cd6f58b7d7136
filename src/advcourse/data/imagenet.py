"""Photographs of ImageNet's 1,000 classes: from folders, from the NIPS 2017 competition, and twenty from a package."""

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby, zip_longest
from pathlib import Path

import torch
from torch import Generator, Tensor

from .small import chosen


def imagenet_folder(
    root: str | Path, n: int | None = None, generator: Generator | None = None, size: int = 224, resize: int = 256
) -> tuple[Tensor, Tensor]:
    """Images from a folder that holds one folder for each class, as ImageNet's validation set is kept.

    Classes are numbered in the order of their folders' names. So the labels are those of ImageNet's networks if all
    1,000 folders are there. The order runs through the classes, as far as each has images left, and only the images
    that are asked for are read.

    Args:
        root: the folder of class folders, or what holds it under the name of val.
        n: how many images; all by default.
        generator: draws the images at random, without replacement, in place of the first ones.
        size: height and width of the square that is cut from the middle.
        resize: length to which the shorter side is brought before, bilinearly. The weights of
            `advcourse.models.torchvision` say which size and resize they expect.

    Returns:
        Images, float32 (n, 3, size, size) in [0, 1], and labels, int64 (n,).

    Raises:
        ValueError: for an n that is not in 1..available, a size that is not in 1..resize, or a damaged image.
        FileNotFoundError: if there is no such folder, or no image for a class.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torchvision.utils import save_image
        >>> with TemporaryDirectory() as root:
        ...     for name in "cat", "dog":
        ...         Path(root, name).mkdir()
        ...         save_image(torch.ones(3, 300, 400), Path(root, name, "1.jpeg"))
        ...     x, y = imagenet_folder(root, size=224, resize=256)
        >>> x.shape, y.tolist()
        (torch.Size([2, 3, 224, 224]), [0, 1])
    """
    from torchvision.datasets import ImageFolder

    home = Path(root) / "val" if (Path(root) / "val").is_dir() else Path(root)
    try:
        folder = ImageFolder(home)
    except OSError as error:
        raise FileNotFoundError(f"{home} does not hold a folder of images for each class: {error}") from error
    by_class = [list(images) for _, images in groupby(folder.samples, key=lambda sample: sample[1])]
    samples = [sample for turn in zip_longest(*by_class) for sample in turn if sample]
    labels = torch.tensor([label for _, label in samples], device="cpu")
    rows = chosen(labels, n, generator)
    return _squares([Path(samples[row][0]) for row in rows.tolist()], size, resize), labels[rows]


def imagenet_samples(size: int = 224, resize: int = 256) -> tuple[Tensor, Tensor]:
    """Twenty photographs of as many ImageNet classes but one, which come with foolbox (extra `imagenet`).

    Too few for a percentage, enough to see what an attack does to real photographs without a download.

    Args:
        size: height and width of the square that is cut from the middle.
        resize: length to which the shorter side is brought before.

    Returns:
        Images, float32 (20, 3, size, size) in [0, 1], and labels, int64 (20,).

    Raises:
        ValueError: for a size that is not in 1..resize.
        FileNotFoundError: if foolbox is not installed.

    Example:
        >>> x, y = imagenet_samples()
        >>> x.shape, y[:4].tolist()
        (torch.Size([20, 3, 224, 224]), [243, 559, 438, 990])
    """
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the twenty photographs come with foolbox: pip install 'advcourse[imagenet]'")
    paths = sorted(Path(spec.origin).parent.glob("data/imagenet_*.jpg"))
    labels = torch.tensor([int(path.stem.split("_")[2]) for path in paths], device="cpu")
    return _squares(paths, size, resize), labels


def nips17(root: str | Path, n: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The 1,000 photographs of the NIPS 2017 competition ("ImageNet-compatible"), for comparing transfer attacks.

    Args:
        root: the folder of images.csv, with the columns ImageId, TrueLabel and TargetClass, whose labels begin at 1,
            and of images/, with a file ImageId.png of 299 × 299 pixels for each.
        n: how many images; all by default.

    Returns:
        Images, float32 (n, 3, 299, 299) in [0, 1], their labels, int64 (n,), and the labels that a targeted attack is
        to bring about, int64 (n,), which the competition chose.

    Raises:
        ValueError: for an n that is not in 1..available, a damaged table or image.
        FileNotFoundError: if the table or an image is missing; the message says where it belongs.
    """
    table = Path(root) / "images.csv"
    if not table.is_file():
        raise FileNotFoundError(
            f"{table} is missing: root must hold images.csv, as the competition or a repository of a transfer attack "
            "has it, and images/"
        )
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["ImageId"], int(row["TrueLabel"]), int(row["TargetClass"])) for row in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{table} must have the columns ImageId, TrueLabel and TargetClass, numbers from 1 in the last two: {error}"
        ) from error
    labels = torch.tensor([row[1:] for row in rows], device="cpu").view(-1, 2) - 1
    if len(rows) == 0 or labels.min() < 0:
        raise ValueError(f"{table} must have a row for each image, with labels from 1")
    picked = chosen(labels, n, None)
    paths = [table.parent / "images" / f"{rows[row][0]}.png" for row in picked.tolist()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing, and {len(missing) - 1} more: they belong to {table}")
    right, sought = labels[picked].unbind(1)
    return _squares(paths, 299, 299), right, sought


def _squares(paths: Sequence[Path], size: int, resize: int) -> Tensor:
    """The middle of each photograph (N, 3, size, size) in [0, 1], its shorter side brought to resize."""
    from torchvision.datasets.folder import pil_loader
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    if not 1 <= size <= resize:
        raise ValueError(f"size must be in 1..{resize}, the length of the shorter side, got {size}")
    square = Compose([Resize(resize), CenterCrop(size), PILToTensor()])
    images = torch.empty(len(paths), 3, size, size, dtype=torch.float32, device="cpu")
    for image, path in zip(images, paths, strict=True):
        try:
            image.copy_(square(pil_loader(path)) / 255)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
            raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it") from error
    return images
