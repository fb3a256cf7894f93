"""`python -m clipfuse.tiny FOLDER TASK SPLIT...` draws splits of a task into `FOLDER/TASK`."""

import sys
from pathlib import Path

from clipfuse.tiny.suite import SUITE, write_split


def main() -> None:
    """Draw what the command line names."""
    folder, name, *splits = sys.argv[1:]
    task = next(task for task in SUITE if task.name == name)
    for split in splits:
        write_split(task, split, Path(folder) / name / split)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
