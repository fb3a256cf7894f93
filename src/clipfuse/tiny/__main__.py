"""`python -m clipfuse.tiny FOLDER TASK...` draws tasks of the suite into a folder."""

import sys
from pathlib import Path

from clipfuse.tiny.suite import SUITE, write_task


def main() -> None:
    """Draw what the command line names."""
    folder, *names = sys.argv[1:]
    tasks = {task.name: task for task in SUITE}
    for name in names:
        write_task(tasks[name], Path(folder))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
