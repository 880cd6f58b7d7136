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
PATIENCE = 2  # tests of a part that may end the process, before the rest of the part is left


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

    def add(self, test: Test, reason: str) -> None:
        """What one more of its tests found."""
        self.verdicts.append(Verdict(test.name, test.title, test.points, _in_a_line(reason)))

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

    @property
    def max(self) -> float:
        return sum(mark.max for mark in self.marks)


class Examiner:
    """Grades submissions of one assignment. The tests run here and the submission in another process, so neither the
    tests nor their verdict can be read or changed by what is graded.

    Each part is tried with the instructor's solution of the parts before it: a mistake costs once. A student's
    cells cannot import the modules that the set-up names in a list, `FORBIDDEN`.

    Args:
        assignment: with its tests.
        limits: for each submission.

    Raises:
        ValueError: if `FORBIDDEN` is something else than a list of names.
    """

    def __init__(self, assignment: Assignment, limits: Limits | None = None) -> None:
        self.assignment, self.limits = assignment, limits or Limits()
        here = ModuleType(NOTEBOOK)
        sys.modules[NOTEBOOK] = here  # classes of the set-up are found by their name, here as there
        run_cell(assignment.setup.source, assignment.setup.label, vars(here))
        self.names = vars(here)
        self.forbidden = self.names.get("FORBIDDEN", [])
        if not isinstance(self.forbidden, list) or not all(isinstance(module, str) for module in self.forbidden):
            raise ValueError(f"FORBIDDEN must be a list of modules by name, got {self.forbidden!r}")

    def __call__(self, cells: list[Cell]) -> Report:
        """Try a student's cells. What ends the process costs the test that it happens in, and the second time the rest
        of the part: or an endless loop would eat the time of all parts."""
        parts = self.assignment.parts
        report = Report.without_marks(self.assignment)
        left = [(number, test) for number, part in enumerate(parts) for test in part.tests]
        wrong: list[str] = []
        ended = [0] * len(parts)  # how many tests of a part have ended the process
        deadline = time.monotonic() + self.limits.total
        try:
            while left:
                with Remote(self.limits, deadline) as remote:
                    report.refused = remote.refused
                    if (deadly := self._run(remote, cells, wrong)) is not None:
                        cells = [cell for cell in cells if cell != deadly]
                        continue
                    solved = 0
                    while left and remote.alive:
                        number, test = left[0]
                        if ended[number] == PATIENCE:
                            report.marks[number].add(test, f"not tried: {PATIENCE} tests of this part did not end")
                            left.pop(0)
                            continue
                        for part in parts[solved:number]:
                            _run_all(remote, part.solution)
                        solved = number
                        reason = self._reason_to_fail(test, remote, parts[: number + 1], wrong, report.scores)
                        ended[number] += not remote.alive
                        report.marks[number].add(test, reason)
                        left.pop(0)
        except SubmissionError as error:  # no time is left, or the cells have broken what all cells need
            for number, test in left:
                report.marks[number].add(test, str(error))
        return report

    def _run(self, remote: Remote, cells: list[Cell], wrong: list[str]) -> Cell | None:
        """Run the set-up and a student's cells there; what went wrong is noted, and the cell that ended it returned."""
        _run_all(remote, [self.assignment.setup])
        remote.forbid(self.forbidden)
        for cell in cells:
            try:
                remote.run(cell.source, cell.label)
            except SubmissionError as error:
                if (note := f"{cell.label}: {error}") not in wrong:
                    wrong.append(note)
                if not remote.alive:
                    return cell
        return None

    def _reason_to_fail(
        self, test: Test, remote: Remote, parts: Iterable[Part], wrong: list[str], scores: dict[str, float]
    ) -> str:
        """Try a test with what these parts define there. Why it failed; nothing if it passed."""
        try:
            names = self.names | {name: remote.look_up(name) for part in parts for name in part.names}
            run_cell(test.source, test.title, names)
            if test.contest and isfinite(names["score"]):
                scores[test.title] = float(names["score"])
        except AssertionError as error:
            return str(error) or test.title
        except SubmissionError as error:
            return "; ".join([str(error), *(wrong if str(error).startswith("NameError") else [])])
        except Exception as error:  # of the test, when it looks at the answer
            return f"the answer is not of the kind that was asked for ({type(error).__name__}: {error})"
        return ""


def _run_all(remote: Remote, cells: Iterable[Cell]) -> None:
    for cell in cells:
        remote.run(cell.source, cell.label)


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
