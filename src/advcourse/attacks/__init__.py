"""The attacks, one family a file, each a short composition of a ball, a goal, a loss, a gradient and the loop."""

from ..ascent import State, ascend
from .apgd import APGD
from .bandits import Bandits
from .base import Attack
from .boundary import Boundary
from .carlini_wagner import CarliniWagner
from .deepfool import DeepFool
from .genattack import GenAttack
from .gradient_sign import FGSM, PGD
from .hard_label import HardLabel, Traced
from .hop_skip_jump import HopSkipJump
from .minimum_norm import Nearest
from .nes import NES
from .opt import OPT, Doubling, SignOPT
from .query import Queried, QueryAttack
from .ray_search import RayS
from .square import Square
from .substitute import Substitute, Substituted
from .transfer import Transfer
from .universal import UniversalDeepFool, UniversalPerturbation
from .zoo import ZOO

__all__ = [
    "APGD",
    "FGSM",
    "NES",
    "OPT",
    "PGD",
    "ZOO",
    "Attack",
    "Bandits",
    "Boundary",
    "CarliniWagner",
    "DeepFool",
    "Doubling",
    "GenAttack",
    "HardLabel",
    "HopSkipJump",
    "Nearest",
    "Queried",
    "QueryAttack",
    "RayS",
    "SignOPT",
    "Square",
    "State",
    "Substitute",
    "Substituted",
    "Traced",
    "Transfer",
    "UniversalDeepFool",
    "UniversalPerturbation",
    "ascend",
]
