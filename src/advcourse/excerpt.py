"""The library's own lines in a notebook: what a chapter shows is what it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.display import Code


def excerpt(subject: Callable[..., Any], start: str, end: str | None = None) -> Code:
    """Show a part of the code of a function or class.

    Args:
        subject: whose code.
        start: what the first line shown contains.
        end: what the line after the last one shown contains; None for all the rest.

    Returns:
        The lines, for IPython to display. Leave it as the last expression of a cell.

    Raises:
        ValueError: if no line contains `start`, or none after it `end`.

    Example:
        >>> from advcourse.goals import margin
        >>> print(excerpt(margin, "rivals =", "return").data)
        rivals = goal.rivals(logits).max(1).values
        lead = logit(logits, goal) - goal.sign * rivals
    """
    from IPython.display import Code

    lines = inspect.getsource(subject).splitlines()
    first = _find(lines, start, 0)
    last = len(lines) if end is None else _find(lines, end, first + 1)
    return Code(dedent("\n".join(lines[first:last])), language="python")


def _find(lines: list[str], text: str, begin: int) -> int:
    for number in range(begin, len(lines)):
        if text in lines[number]:
            return number
    raise ValueError(f"got {text!r}, expected a part of one of these lines:\n" + "\n".join(lines[begin:]))
