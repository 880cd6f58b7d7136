"""What an attacker without the model may ask: windows on a target, each with a ledger of every query."""

from .http import Http
from .windows import BudgetExhausted, Labels, Oracle, Scores, Target, consult, respond

__all__ = ["BudgetExhausted", "Http", "Labels", "Oracle", "Scores", "Target", "consult", "respond"]
