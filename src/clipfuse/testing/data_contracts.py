"""What rules promise that look at data."""

from clipfuse.fusion.merge import merge
from clipfuse.testing.case import Case, fail
from clipfuse.testing.contracts import contract
from clipfuse.testing.models import random_models


@contract(lambda case: case.chain.looks)
def ledger(case: Case) -> None:
    """What is declared is looked at, and nothing else: the recipe counts it, the same every time."""
    models = random_models(0.3)
    first, again = (
        merge(case.pool(case.members(models)), case.chain, data=case.data).recipe.get("data", []) for _ in range(2)
    )
    if first != again:
        fail(f"a second merge has looked at {again}, the first at {first}")
    looked = {f"{row['split']}_images" for row in first if row["images"]}
    looked |= {f"{row['split']}_labels" for row in first if row["labels"]}
    if looked != set(case.chain.uses):
        fail(f"it declares {sorted(case.chain.uses)} and has looked at {sorted(looked)}")
