"""What a training runs on: Hugging Face Accelerate, on one processor, one GPU or many."""

import os
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def engine(half: bool = False) -> "Accelerator":
    """An Accelerator for `train`, on the devices and processes that the script was launched with.

    ``python script.py`` takes a GPU if there is one, and ``accelerate launch script.py`` or ``torchrun`` several, on
    this machine or on many, with distributed data parallelism.

    Args:
        half: compute in half precision where that is faster: bfloat16 on GPUs and processors that have it, float16
            with scaled losses on older GPUs. Weights stay in single precision. Elsewhere it is off, with a warning.

    Raises:
        ImportError: if Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise ImportError("training needs Hugging Face Accelerate: pip install 'advcourse[train]'") from error
    AcceleratorState._reset_state()  # or the precision of an earlier engine in this process would be kept
    # Without a GPU, processes that were launched together would not find one another unless they are told to.
    cpu = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision=_half() if half else None, cpu=cpu)


def _half() -> str:
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return "bf16"
    warnings.warn("half precision is off: this processor gains nothing from it", stacklevel=3)
    return "no"
