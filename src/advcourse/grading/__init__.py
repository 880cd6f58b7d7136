"""Assignments: what an instructor's notebook asks for, and what submissions get.

assignment notebook ──► Examiner ──┬─ tests, here
submission's cells ────────────────┴─ Remote: another process, which has given up files, network and company
"""

from .examine import Examiner, Mark, Report, Verdict
from .grade import feedback, find_submissions, grade, leaderboard, table, totals
from .notebooks import Assignment, Cell, Part, Test, answers, find_assignment, read_assignment, read_notebook
from .remote import Remote, SubmissionEnded, SubmissionError
from .sandbox import Limits, confine

__all__ = [
    "Assignment",
    "Cell",
    "Examiner",
    "Limits",
    "Mark",
    "Part",
    "Remote",
    "Report",
    "SubmissionEnded",
    "SubmissionError",
    "Test",
    "Verdict",
    "answers",
    "confine",
    "feedback",
    "find_assignment",
    "find_submissions",
    "grade",
    "leaderboard",
    "read_assignment",
    "read_notebook",
    "table",
    "totals",
]
