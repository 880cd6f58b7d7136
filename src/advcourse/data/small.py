"""Small images: a subset of Fashion-MNIST that ships with the package, the whole of it, and CIFAR-10."""

import gzip
import io
import lzma
import os
from collections.abc import Iterable
from functools import cache
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from ..files import ASSETS, read_verified, sha256, write_whole

FASHION_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Names of the ten Fashion-MNIST labels, 0 to 9."""

FASHION_MEAN, FASHION_STD = 0.2860, 0.3530
"""Mean and standard deviation of the 60,000 training images in [0, 1]."""

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
"""The same of CIFAR-10's 50,000, for each colour."""

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
SUBSET = {
    "train": "048e4d09fe8e1164c8753d68e06522631e6afd26e37538ca93d245f7c17cfd27",
    "test": "8452400ed4e11974cfa3b91aa5dd1f234cd781fd721549a9c910e13a6397f16a",
}  # SHA-256 of the bundled files; tools/make_subset.py prints them


def fashion_mnist(
    split: str,
    n: int | None = None,
    classes: Iterable[int] | None = None,
    generator: Generator | None = None,
    root: str | Path | None = None,
    full: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST images and labels (Xiao et al. 2017).

    The bundled subset holds 12,000 training and 2,000 test images, the same number of each class, in an order that runs
    through the classes: 0, 1, …, 9, 0, 1, … So the first n are balanced, and always the same.

    Args:
        split: "train" or "test".
        n: how many images; all by default.
        classes: keep these labels only. Labels keep their numbers.
        generator: draws the images at random, without replacement, in place of the first ones.
        root: folder with all 70,000 images: the four .gz files, or what torchvision made of them.
        full: use all 70,000 images, from `root`, from Debian's package dataset-fashion-mnist or from torchvision's
            download, in that order.

    Returns:
        Images, float32 (n, 1, 28, 28) in [0, 1], and labels, int64 (n,).

    Raises:
        ValueError: for an unknown split or class, an n that is not in 1..available, or a damaged file.
        FileNotFoundError: if a file is missing; the message says how to get it.

    Example:
        >>> x, y = fashion_mnist("test", n=100)
        >>> x.shape, x.dtype, y[:12].tolist()
        (torch.Size([100, 1, 28, 28]), torch.float32, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    """
    _check_split(split)
    everything = full or root is not None
    images, labels = _everything(split, root) if everything else _bundled(split)
    more = "" if everything else "; full=True has 60,000 train and 10,000 test images"
    rows = chosen(labels, n, generator, classes, more)
    return images[rows, None].float() / 255, labels[rows]


def cifar10(
    split: str,
    n: int | None = None,
    classes: Iterable[int] | None = None,
    generator: Generator | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> tuple[Tensor, Tensor]:
    """CIFAR-10 images and labels (Krizhevsky 2009), in the order of its files: the first n are RobustBench's.

    Args:
        split: "train", 50,000 images, or "test", 10,000.
        n: how many images; all by default.
        classes: keep these labels only. Labels keep their numbers.
        generator: draws the images at random, without replacement, in place of the first ones.
        root: folder that holds cifar-10-batches-py; by default, one in the user's cache.
        download: fetch the files into root unless they are there.

    Returns:
        Images, float32 (n, 3, 32, 32) in [0, 1], and labels, int64 (n,).

    Raises:
        ValueError: for an unknown split or class, or an n that is not in 1..available.
        FileNotFoundError: if a file is missing or damaged; the message says how to get it.
    """
    _check_split(split)
    images, labels = _cifar10(split, root, download)
    rows = chosen(labels, n, generator, classes)
    return images[rows].float() / 255, labels[rows]


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')


def chosen(
    labels: Tensor, n: int | None, generator: Generator | None, classes: Iterable[int] | None = None, more: str = ""
) -> Tensor:
    """The rows that were asked for; `more` says where there are more of them."""
    rows = torch.arange(len(labels), device="cpu")
    if classes is not None:
        wanted = sorted(set(classes))
        if not wanted or not set(wanted) <= set(range(10)):
            raise ValueError(f"classes must be some of 0..9, got {wanted}")
        rows = rows[torch.isin(labels, torch.tensor(wanted, device="cpu"))]
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= len(rows)):
        raise ValueError(f"n must be an integer in 1..{len(rows)} for this choice of images, got {n!r}{more}")
    if generator is not None:
        rows = rows[torch.randperm(len(rows), generator=generator)]
    return rows[:n]


@cache
def _bundled(split: str) -> tuple[Tensor, Tensor]:
    path, remedy = ASSETS / "fashion_mnist" / f"{split}.npy.xz", "install advcourse again"
    stream = io.BytesIO(lzma.decompress(read_verified(path, SUBSET[split], remedy)))
    images, labels = np.load(stream), np.load(stream)
    return torch.from_numpy(images), torch.from_numpy(labels).long()


@cache
def _everything(split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import FashionMNIST

    home = Path(root) if root is not None else DEBIAN
    if root is not None and not home.is_dir():
        raise FileNotFoundError(f"{home} is not a folder: root must hold Fashion-MNIST's four files")
    archives = list(home.glob("*-ubyte.gz"))
    try:
        if archives or root is None:
            # torchvision reads unpacked files, and the archives' folder may be read-only: unpack them into a cache.
            cached = _cache_folder() / sha256(str(home.resolve()).encode())[:16]
            for archive in archives:
                write_whole(cached / "FashionMNIST" / "raw" / archive.stem, gzip.decompress(archive.read_bytes()))
            home = cached
        whole = FashionMNIST(home, train=split == "train", download=True)
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:
        raise FileNotFoundError(
            f"all of Fashion-MNIST could not be had from {home} ({error}): install Debian's dataset-fashion-mnist, or "
            "put the four *-ubyte.gz files into a folder and pass it as root="
        ) from error
    return whole.data, whole.targets


@cache
def _cifar10(split: str, root: str | Path | None, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    home = Path(root) if root is not None else _cache_folder()
    try:
        whole = CIFAR10(home, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"CIFAR-10 could not be had from {home} ({error}): pass download=True (170 MB), or put the folder "
            "cifar-10-batches-py into a folder and pass that as root="
        ) from error
    return torch.from_numpy(whole.data).permute(0, 3, 1, 2), torch.tensor(whole.targets, device="cpu")


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "advcourse"
