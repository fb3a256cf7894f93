"""Name patterns against `re`, which is right, and that none takes long."""

import re
import time

import pytest

from clipfuse.checkpoints.name_patterns import matches_end, matches_whole

NAMES = (
    "encoder.layers.11.self_attn.q_proj",
    "vision_model.encoder.layers.3.mlp.fc1",
    "encoder.layers.1.self_attn.out_proj",
    "embeddings.patch_embedding",
    "a.ab.b",
    "ab",
    "",
)
PATTERNS = (
    *("q_proj", "proj", "layers.1.self_attn.q_proj", "q.proj", "^encoder.layers.11.self_attn.q_proj", "^layers.*"),
    *(r"layers\.(0|1|11)\..*", r".*k_proj|.*q_proj", r"(q|k|v)_proj", r"encoder\.layers\.[0-5]\.mlp\.\w+", r"fc\d"),
    *(r"[^.]+\.[^.]+", r"\d+\.self_attn\.(?:q|out)_proj", r"\D+", r"a?b", r"a??b", r"(a|ab)(\.|b)*b", r"a.{2,3}b"),
    *(r"[a-q.]*?\.b", r".{34}", r".{3,}", r"(?:a|)b$", r"a$b", r"(.*\.)?fc1", r"((a)|(b))", r"(a.?){2}b", r"\.b", ""),
    *(r"[\w.-]+", r"\W", r"[^\d]{2}", r"x|", r"a\.ab\.b", r"(a|a)(a|a)b"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_re_does(pattern: str):
    for name in NAMES:
        assert matches_whole(pattern, name) is bool(re.fullmatch(pattern, name)), name
        assert matches_end(pattern, name) is bool(re.match(rf"(.*\.)?({pattern})$", name)), name


def test_the_patterns_tell_names_apart():
    """Else the test above would show nothing."""
    found = [[matches_end(pattern, name) for name in NAMES] for pattern in PATTERNS]
    assert sum(any(row) and not all(row) for row in found) > 25


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a", "has no"),
        ("a)", "has no"),
        ("*a", "nothing to repeat"),
        ("a**", "nothing to repeat"),
        ("(a+)+", "inside another"),
        ("(.*a){9}", "inside another"),
        ("(?=a)b", "nothing to repeat"),
        ("(?i)a", "nothing to repeat"),
        (r"(a)\1", "not understood"),
        (r"\bq_proj", "not understood"),
        ("[z-a]", "is none"),
        ("[[a]]", "not understood"),
        ("[a", "not understood"),
        ("a{3,2}", "fewer than 3"),
        ("^*a", "cannot repeat"),
        ("a" * 201, "has 201 characters"),
    ],
)
def test_what_is_not_understood(pattern: str, words: str):
    with pytest.raises(ValueError, match=words):
        matches_whole(pattern, "a")


@pytest.mark.parametrize(
    "pattern",
    [
        ".*" * 99 + "x",
        r"\w*" * 66,
        "(a|a)" * 40,
        "(a?)" * 50,
        "(?:a|aa)*" * 20 + "b",
        ".{0,999}" * 25,
        "(" * 99 + ")" * 99,
    ],
)
def test_none_takes_long(pattern: str):
    """`re` would take years over some of these."""
    began = time.perf_counter()
    matches_end(pattern, "a" * 60)
    assert time.perf_counter() - began < 0.5
