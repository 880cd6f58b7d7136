"""The attacks, one family a file, each a short composition of a ball, a goal, a loss, a gradient and the loop."""

from ..ascent import State, ascend
from .base import Attack
from .gradient_sign import FGSM, PGD

__all__ = ["FGSM", "PGD", "Attack", "State", "ascend"]
