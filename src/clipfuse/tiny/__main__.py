"""`python -m clipfuse.tiny FOLDER TASK...` draws tasks of the suite into a folder."""

import sys
from pathlib import Path

from clipfuse.tiny.suite import SUITE, write_task

folder, *names = sys.argv[1:]
for task in SUITE:
    if task.name in names:
        write_task(task, Path(folder))
