"""Attacks, oracles and training loops of a course on adversarial machine learning.

An attack is an optimization problem. What the attacker may see decides where its gradient comes from.
"""

__version__ = "0.1.0"
