"""One submission against the tests of its assignment."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from types import ModuleType

from .notebooks import Assignment, Cell, Part, Test
from .remote import NOTEBOOK, Remote, SubmissionError, run_cell
from .sandbox import Limits

LONGEST_REASON = 300


@dataclass(frozen=True)
class Verdict:
    """What a test found.

    Attributes:
        test: its name.
        title: what it looks at.
        points: what it is worth.
        reason: why it failed; nothing if it passed.
    """

    test: str
    title: str
    points: float
    reason: str = ""


@dataclass
class Mark:
    """What a part got: its name, the points to be had, and the verdicts of its tests."""

    part: str
    max: float
    verdicts: list[Verdict] = field(default_factory=list)

    def fail(self, part: Part, reason: str) -> None:
        """All tests of the part have failed for the same reason."""
        self.verdicts = [Verdict(test.name, test.title, test.points, _in_a_line(reason)) for test in part.tests]

    @property
    def points(self) -> float:
        return sum(verdict.points for verdict in self.verdicts if not verdict.reason)

    @property
    def reason(self) -> str:
        return "; ".join(f"−{verdict.points:g}: {verdict.reason}" for verdict in self.verdicts if verdict.reason)


@dataclass
class Report:
    """What a submission got.

    Attributes:
        marks: one for each part.
        scores: of each contest, by its title.
        refused: how this system could not confine the submission.
    """

    marks: list[Mark]
    scores: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @classmethod
    def without_marks(cls, assignment: Assignment) -> "Report":
        """What a submission has got before it is looked at."""
        return cls([Mark(part.name, part.max) for part in assignment.parts])

    @property
    def points(self) -> float:
        return sum(mark.points for mark in self.marks)


class Examiner:
    """Grades submissions of one assignment. The tests run here and the submission in another process, so neither the
    tests nor their verdict can be read or changed by what is graded.

    Each part is tried with the instructor's solution of the parts before it: a mistake costs once.

    Args:
        assignment: with its tests.
        limits: for each submission.
    """

    def __init__(self, assignment: Assignment, limits: Limits | None = None) -> None:
        self.assignment, self.limits = assignment, limits or Limits()
        here = ModuleType(NOTEBOOK)
        sys.modules[NOTEBOOK] = here  # classes of the set-up are found by their name, here as there
        run_cell(assignment.setup.source, assignment.setup.label, vars(here))
        self.names = vars(here)

    def __call__(self, cells: list[Cell]) -> Report:
        """Try a student's cells. What ends the process costs the part that it happens in."""
        report = Report.without_marks(self.assignment)
        left = list(zip(self.assignment.parts, report.marks, strict=True))
        wrong: list[str] = []
        deadline = time.monotonic() + self.limits.total
        try:
            while left:
                with Remote(self.limits, deadline) as remote:
                    report.refused = remote.refused
                    if (deadly := self._run(remote, cells, wrong)) is not None:
                        cells = [cell for cell in cells if cell != deadly]
                        continue
                    for part in self.assignment.parts[: -len(left)]:
                        _run_all(remote, part.solution)
                    while left and remote.alive:
                        part, mark = left.pop(0)
                        self._examine(remote, part, mark, wrong, report.scores)
                        if remote.alive:
                            _run_all(remote, part.solution)
        except SubmissionError as error:  # no time is left, or the cells have broken what all cells need
            for part, mark in left:
                mark.fail(part, str(error))
        return report

    def _run(self, remote: Remote, cells: list[Cell], wrong: list[str]) -> Cell | None:
        """Run the set-up and a student's cells there; what went wrong is noted, and the cell that ended it returned."""
        _run_all(remote, [self.assignment.setup])
        for cell in cells:
            try:
                remote.run(cell.source, cell.label)
            except SubmissionError as error:
                if (note := f"{cell.label}: {error}") not in wrong:
                    wrong.append(note)
                if not remote.alive:
                    return cell
        return None

    def _examine(self, remote: Remote, part: Part, mark: Mark, wrong: list[str], scores: dict[str, float]) -> None:
        """Try each test of a part."""
        parts = self.assignment.parts
        known = [name for each in parts[: parts.index(part) + 1] for name in each.names]
        for test in part.tests:
            try:
                names = self.names | {name: remote.look_up(name) for name in known}
                run_cell(test.source, test.title, names)
                if test.contest and isfinite(names["score"]):
                    scores[test.title] = float(names["score"])
            except Exception as error:  # of the submission, or of the test when it looks at the answer
                reason = _in_a_line(_reason(test, error, wrong))
            else:
                reason = ""
            mark.verdicts.append(Verdict(test.name, test.title, test.points, reason))


def _run_all(remote: Remote, cells: Iterable[Cell]) -> None:
    for cell in cells:
        remote.run(cell.source, cell.label)


def _reason(test: Test, error: Exception, wrong: list[str]) -> str:
    """Why a test failed."""
    if isinstance(error, AssertionError):
        return str(error) or test.title
    if isinstance(error, SubmissionError):
        return "; ".join([str(error), *(wrong if str(error).startswith("NameError") else [])])
    return f"the answer is not of the kind that was asked for ({type(error).__name__}: {error})"


def _in_a_line(text: str) -> str:
    """The beginning of a text, in one line."""
    return " ".join(printable(text).split())[:LONGEST_REASON]


def printable(text: str) -> str:
    """A text of letters that can be written into any table, with blanks in place of all others.

    Example:
        >>> printable("a\\n| b")
        'a | b'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)
