"""What rules promise that look at data."""

from clipfuse.fusion.merge import merge
from clipfuse.testing.case import Case, fail
from clipfuse.testing.contracts import contract
from clipfuse.testing.models import random_models


@contract(lambda case: case.chain.looks)
def ledger(case: Case) -> None:
    """What is declared is looked at, and nothing else: the recipe counts it, the same every time."""
    models = random_models(0.3)
    first, again = (merge(case.pool(case.members(models)), case.chain, data=case.data).recipe for _ in range(2))
    if first["data"] != again["data"]:
        fail(f"a second merge has looked at {again['data']}, the first at {first['data']}")
    looked = {f"{row['split']}_images" for row in first["data"] if row["images"]}
    looked |= {f"{row['split']}_labels" for row in first["data"] if row["labels"]}
    if looked != set(case.chain.uses):
        fail(f"it declares {sorted(case.chain.uses)} and has looked at {sorted(looked)}")
    if not all(row["images"] and row["passes"] >= 1 for row in first["data"]):
        fail(f"the ledger is {first['data']}")
