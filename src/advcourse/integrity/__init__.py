"""Training-time threats: what a changed training set does to a model, and how that is found and cured."""

from .backdoor import Backdoor, Blended, Patch, Sinusoidal, Trigger, attack_success
from .bilevel import BilevelPoisoning, Poisoned, fit, hypergradient, logistic_loss
from .cures import prune
from .detectors import Clusters, activation_clustering, features, spectral_signatures, strip_entropy
from .neural_cleanse import Inverted, NeuralCleanse, anomaly_index
from .poisoning import Collision, FeatureCollision, flip_labels

__all__ = [
    "Backdoor",
    "BilevelPoisoning",
    "Blended",
    "Clusters",
    "Collision",
    "FeatureCollision",
    "Inverted",
    "NeuralCleanse",
    "Patch",
    "Poisoned",
    "Sinusoidal",
    "Trigger",
    "activation_clustering",
    "anomaly_index",
    "attack_success",
    "features",
    "fit",
    "flip_labels",
    "hypergradient",
    "logistic_loss",
    "prune",
    "spectral_signatures",
    "strip_entropy",
]
