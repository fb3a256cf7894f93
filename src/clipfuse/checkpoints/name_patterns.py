r"""Regular expressions over module names that strangers wrote: matched as `re` would, but never for long.

All places where a match may stand are followed at once, as bits of one number (bit i: before character i), so that the
time grows with the lengths of pattern and name and with nothing else. Understood are literals, `.`, classes,
`\d \w \s`, groups, `|`, `^`, `$` and repeats, of which none may stand inside another.
"""

import re
from collections import deque
from collections.abc import Callable
from functools import lru_cache

LONGEST = 200
"""Characters of a pattern."""

TOKEN = re.compile(
    r"(?P<atom>\\[dwsDWS]|\\[^\w]|\[\^?(?:\\[dws.-]|\w-\w|[\w.]|-(?=\]))+\]|[^\\\[\](){}*+?|^$])"
    r"|(?P<repeat>[*+?]\??|\{\d{1,3}(?:,\d{0,3})?\}\??)"
    r"|(?P<mark>\(\?:|[()|^$])"
)

Step = Callable[[str, int], int]
"""(name, places before) → places after."""
Tokens = deque[tuple[str, str]]
"""(kind, text)."""


def matches_whole(pattern: str, name: str) -> bool:
    """`re.fullmatch(pattern, name)`. Raises ValueError, which says why, for a pattern that is not understood."""
    return reaches_end(pattern, name, 1)


def matches_end(pattern: str, name: str) -> bool:
    r"""`re.match(rf"(.*\.)?({pattern})$", name)`: all of a name, or what follows one of its dots. Raises ValueError."""
    return reaches_end(pattern, name, 1 | sum(2 << at for at, letter in enumerate(name) if letter == "."))


def reaches_end(pattern: str, name: str, places: int) -> bool:
    return bool(compiled(pattern)(name, places) >> len(name))


@lru_cache(1 << 12)
def compiled(pattern: str) -> Step:
    if len(pattern) > LONGEST:
        raise ValueError(f"has {len(pattern)} characters; takes {LONGEST}")
    tokens: Tokens = deque()
    end = 0
    while end < len(pattern):
        if (found := TOKEN.match(pattern, end)) is None:
            raise ValueError(f"{pattern[end:][:12]!r} in it is not understood")
        tokens.append((str(found.lastgroup), found.group()))
        end = found.end()
    step, _ = choice(tokens)
    if tokens:
        raise ValueError("a ')' has no '('")
    return step


def choice(tokens: Tokens) -> tuple[Step, bool]:
    """Branches up to the end or a `)`, and whether something in them repeats."""
    branches = [sequence(tokens)]
    while tokens and tokens[0][1] == "|":
        tokens.popleft()
        branches.append(sequence(tokens))

    def run(name: str, places: int) -> int:
        found = 0
        for step, _ in branches:
            found |= step(name, places)
        return found

    return run, any(loops for _, loops in branches)


def sequence(tokens: Tokens) -> tuple[Step, bool]:
    steps: list[Step] = []
    any_loops = False
    while tokens and tokens[0][1] not in ("|", ")"):
        kind, text = tokens.popleft()
        step, loops = group(tokens) if text in ("(", "(?:") else (single(kind, text), False)
        if tokens and tokens[0][0] == "repeat":
            if text in ("^", "$"):
                raise ValueError(f"{text!r} in it cannot repeat")
            low, high = bounds(tokens.popleft()[1])
            if loops and high > 1:
                raise ValueError("a repeat stands inside another")
            step, loops = repeated(step, low, high), loops or high > 1
        steps.append(step)
        any_loops = any_loops or loops

    def run(name: str, places: int) -> int:
        for step in steps:
            if not places:
                break
            places = step(name, places)
        return places

    return run, any_loops


def group(tokens: Tokens) -> tuple[Step, bool]:
    found = choice(tokens)
    if not tokens:
        raise ValueError("a '(' has no ')'")
    tokens.popleft()
    return found


def single(kind: str, text: str) -> Step:
    if kind == "repeat":
        raise ValueError(f"{text!r} in it has nothing to repeat")
    if text == "^":
        return lambda name, places: places & 1
    if text == "$":
        return lambda name, places: places & (1 << len(name))
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} in it is none ({error.msg})") from None
    return lambda name, places: (places & where(text, name)) << 1


@lru_cache(1 << 14)
def where(atom: str, name: str) -> int:
    """The places in a name that have a character that fits behind them."""
    return sum(1 << at for at, letter in enumerate(name) if re.fullmatch(atom, letter))


def bounds(repeat: str) -> tuple[int, int]:
    """Least and greatest number of times."""
    repeat = repeat[:-1] if len(repeat) > 1 and repeat.endswith("?") else repeat  # lazy ones match the same names
    if not repeat.startswith("{"):
        return {"*": (0, 1000), "+": (1, 1000), "?": (0, 1)}[repeat]
    low, comma, high = repeat[1:-1].partition(",")
    least, most = int(low), int(high) if high else (1000 if comma else int(low))
    if most < least:
        raise ValueError(f"{repeat!r} in it repeats fewer than {least} times")
    return least, most


def repeated(step: Step, low: int, high: int) -> Step:
    def run(name: str, places: int) -> int:
        for _ in range(low):
            places = step(name, places)
        found = places
        for _ in range(low, high):
            places = step(name, places) & ~found  # places that fewer repeats reach lead nowhere new
            if not places:
                break
            found |= places
        return found

    return run
