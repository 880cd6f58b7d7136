"""A prediction API: a model that can only be asked, by those who hold a key, for as long as their budget lasts."""

from .app import create_app, listening, running, server
from .ledger import Conflict, Forgotten, Ledger, Overdrawn, Record, sketch

__all__ = [
    "Conflict",
    "Forgotten",
    "Ledger",
    "Overdrawn",
    "Record",
    "create_app",
    "listening",
    "running",
    "server",
    "sketch",
]
