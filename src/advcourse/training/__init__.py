"""Training: one loop, the methods that decide what it minimises, and monitors that watch it."""

from .augmentation import Crop, Mirror
from .engine import engine
from .fast import NFGSM, FastTraining, FreeTraining, GradAlign
from .history import Epoch, History
from .logs import JsonLines, Log, TensorBoard
from .loop import SGD, train
from .methods import TRADES, Method, PGDTraining, Previous, Ramped, Standard, Uniform, Zero
from .monitors import Action, CatastrophicOverfitting, EarlyStopping, Overfitted
from .recorded import recorded
from .schedules import Constant, Cyclic, OneCycle, Piecewise

__all__ = [
    "NFGSM",
    "SGD",
    "TRADES",
    "Action",
    "CatastrophicOverfitting",
    "Constant",
    "Crop",
    "Cyclic",
    "EarlyStopping",
    "Epoch",
    "FastTraining",
    "FreeTraining",
    "GradAlign",
    "History",
    "JsonLines",
    "Log",
    "Method",
    "Mirror",
    "OneCycle",
    "Overfitted",
    "PGDTraining",
    "Piecewise",
    "Previous",
    "Ramped",
    "Standard",
    "TensorBoard",
    "Uniform",
    "Zero",
    "engine",
    "recorded",
    "train",
]
