"""Chapters are run with one thread, here as by tools/execute.py: faster on small tensors, and sums round alike."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
