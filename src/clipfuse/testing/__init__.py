"""Tests for rules of one's own: the contracts that every rule keeps, and random models. Needs no pytest.

from clipfuse.testing import check_method
check_method("my_rule")
"""

from clipfuse.testing.check import check_contract, check_method, contracts_of
from clipfuse.testing.contracts import CONTRACTS
from clipfuse.testing.models import SMALL, TASKS, random_models, write_models

__all__ = [
    "CONTRACTS",
    "SMALL",
    "TASKS",
    "check_contract",
    "check_method",
    "contracts_of",
    "random_models",
    "write_models",
]
