"""Look for files that a reader neither reads nor refuses in one line: `python scripts/fuzz_readers.py --minutes 10`.

The properties and formats are those of tests/checkpoints/test_fuzz.py, with fresh seeds. Each failure is minimised,
told once, and kept as a file in tests/checkpoints/corpus, which the tests replay. Takes hypothesis.
"""

import argparse
import re
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "checkpoints")]

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from test_fuzz import CORPUS, FORMATS, check  # noqa: E402  # pyright: ignore[reportMissingImports]

AT_ONCE = 200
"""Mutants of a format before the next one's turn."""
MAX_BYTES = 4096
"""Of a file that is kept."""


def place(error: BaseException) -> str:
    """Kind of error, and where in the project it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/clipfuse/" in frame.filename] or frames
    said = re.sub(r"\d+", "N", f": {error}")[:20] if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}{said}"


class Round:
    """Some mutants of one format; failures that are known already are passed over."""

    def __init__(self, kind: str, known: set[str]):
        self.kind, self.known = kind, known
        self.examples = 0
        self.failing: tuple[bytes, BaseException] | None = None

    def run(self) -> None:
        phases = (Phase.generate, Phase.shrink)
        checks = [
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
        ]

        @settings(max_examples=AT_ONCE, database=None, deadline=None, suppress_health_check=checks, phases=phases)
        @given(FORMATS[self.kind].mutants())
        def property_of(raw: bytes) -> None:
            self.examples += 1
            try:
                check(self.kind, raw)
            except Exception as error:
                if place(error) not in self.known:
                    self.failing = raw, error
                    raise

        try:
            property_of()
        except BaseException:
            if self.failing is None:
                raise


def keep(kind: str, raw: bytes) -> str:
    """Write a failing file into the corpus; what it is called there."""
    numbers = [int(path.name.rpartition("-")[2]) for path in CORPUS.glob(f"{kind}-*")]
    path = CORPUS / f"{kind}-{max(numbers, default=0) + 1}"
    if len(raw) > MAX_BYTES:
        return f"not kept, {len(raw):,} bytes"
    path.write_bytes(raw)
    return path.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    asked = parser.parse_args()
    began, known, counts = time.monotonic(), set[str](), dict.fromkeys(asked.formats, 0)
    while (passed := time.monotonic() - began) < 60 * asked.minutes:
        kind = min(counts, key=counts.__getitem__)
        turn = Round(kind, known)
        turn.run()
        counts[kind] += turn.examples
        if turn.failing:
            raw, error = turn.failing
            known.add(place(error))
            print(
                f"{kind}: {place(error)}\n  {type(error).__name__}: {error!s:.300}\n  {raw!r:.600}\n  {keep(kind, raw)}"
            )
    done = sum(counts.values())
    print(f"{done:,} examples in {passed:.0f} s, {done / passed:.0f} a second; {len(known)} failures")
    print("; ".join(f"{kind} {count:,}" for kind, count in counts.items()))
    return int(bool(known))


if __name__ == "__main__":
    sys.exit(main())
