"""The entry point: ^C and SIGTERM are taken care of before anything is imported."""

import signal
import sys
from types import FrameType


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not inside an import: half-imported packages swallow it or fail in other ways."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def start() -> None:
    """Run the command line."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)  # what batch systems send first
        signal.signal(signal.SIGALRM, interrupt)
    try:
        from clipfuse.cli.main import main
    except KeyboardInterrupt:
        print("clipfuse: interrupted", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    start()
