"""A prediction API: a model that can only be asked, by those who hold a key, for as long as their budget lasts."""

from .app import create_app
from .ledger import Conflict, Forgotten, Ledger, Overdrawn, Record, sketch
from .web import listening, running, server

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
