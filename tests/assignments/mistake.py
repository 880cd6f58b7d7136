"""What students get wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """An edit of the solution, and the tests that must fail for it, all others passing.

    Attributes:
        name: what is wrong.
        old: text of the solution, in one part only.
        new: what stands there instead.
        lost: names of tests.
    """

    name: str
    old: str
    new: str
    lost: frozenset[str]


def mistake(name: str, old: str, new: str, *lost: str) -> Mistake:
    return Mistake(name, old, new, frozenset(lost))
