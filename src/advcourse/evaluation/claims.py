"""Findings that are checked where they are stated."""

import numpy as np
import torch
from torch import Tensor


def claim(text: str, condition: object) -> None:
    """State a finding and check it: prints one stable line, or raises.

    Args:
        text: what was found, the same words whenever it holds.
        condition: True or False, of Python, NumPy or torch.

    Raises:
        AssertionError: if the condition is false.
        ValueError: if it is not one truth value: anything else, such as a forgotten `all`, would be true by accident.

    Example:
        >>> claim("two is even", 2 % 2 == 0)
        ✓ two is even
    """
    if isinstance(condition, Tensor) and condition.ndim == 0 and condition.dtype == torch.bool:
        condition = bool(condition)
    if not isinstance(condition, (bool, np.bool_)):
        raise ValueError(
            f"a claim needs one condition, true or false, got {condition!r}: combine with .all() or .any()"
        )
    if not condition:
        raise AssertionError(f"this claim does not hold here: {text}")
    print(f"✓ {text}")
