"""The text tower with shared beginnings gives what transformers gives prompt by prompt."""

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from clipfuse.models.text import SHARED, batches, beginnings, text_features

END = 99


def model() -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = CLIPTextConfig(**sizes, vocab_size=100, projection_dim=16, eos_token_id=END, bos_token_id=98)
    return CLIPTextModelWithProjection(config).eval()


def prompts() -> list[list[int]]:
    """Two beginnings that many share, one inside the other, and prompts that share none."""
    random = torch.Generator().manual_seed(1)

    def words(count: int) -> list[int]:
        return torch.randint(0, 97, (count,), generator=random).tolist()

    alike = [[98, 5, 6, *words(1 + i % 4), END] for i in range(2 * SHARED)]
    longer = [[98, 5, 6, 7, 8, *words(2 + i % 3), END] for i in range(SHARED)]
    alone = [[i, *words(i % 5), END] for i in range(9)]
    return [*alone, *alike, *longer, [98, 5, 6, END]]


@torch.no_grad()
def test_features_are_those_of_transformers():
    tower, tokens = model(), prompts()
    ours = text_features(tower, tokens)
    for ids, found in zip(tokens, ours, strict=True):
        theirs = tower(input_ids=torch.tensor([ids])).text_embeds[0]
        torch.testing.assert_close(found, torch.nn.functional.normalize(theirs, dim=0), rtol=1e-5, atol=1e-6)


def test_beginnings_are_the_longest_that_enough_share_and_never_the_whole():
    tokens = prompts()
    found = beginnings(tokens)
    assert {found[row] for row in range(9)} == {()}
    assert found[-1] == (98, 5, 6)
    assert set(found[-1 - SHARED : -1]) == {(98, 5, 6, 7, 8)}
    assert all(
        len(start) < len(ids) and tuple(ids[: len(start)]) == start for start, ids in zip(found, tokens, strict=True)
    )
    same = [[1, 2, 3]] * SHARED
    assert beginnings(same) == [(1, 2)] * SHARED


def test_rows_of_equal_lengths_go_together_and_none_is_left_out():
    lengths = [(i % 3, 5 + i % 7) for i in range(5000)]
    found = list(batches(lengths))
    assert sorted(row for batch in found for row in batch) == list(range(5000))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in found)
    assert max(len(batch) for batch in found) <= 1024
