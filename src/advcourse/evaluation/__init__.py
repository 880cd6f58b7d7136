"""Measuring: accuracy, clean and under the worst of several attacks, whether to believe it, and claims."""

from .accuracy import accuracy, correct, fooling_rate, mean_and_interval, predict, robust_accuracy, wilson_interval
from .claims import claim
from .curves import accuracy_by_eps, success_by_distance
from .landscape import directions, landscape, loss_change
from .lint import Finding, lint
from .recording import Recorded, provenance, record_transfer
from .transfer import TransferMatrix, transfer_matrix
from .worst_case import Report, Row, auto_attack, worst_case

__all__ = [
    "Finding",
    "Recorded",
    "Report",
    "Row",
    "TransferMatrix",
    "accuracy",
    "accuracy_by_eps",
    "auto_attack",
    "claim",
    "correct",
    "directions",
    "fooling_rate",
    "landscape",
    "lint",
    "loss_change",
    "mean_and_interval",
    "predict",
    "provenance",
    "record_transfer",
    "robust_accuracy",
    "success_by_distance",
    "transfer_matrix",
    "wilson_interval",
    "worst_case",
]
