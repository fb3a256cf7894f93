"""Checking a rule against the contracts, with nothing but torch and clipfuse."""

from typing import Any

import clipfuse.fusion
import clipfuse.testing.after_contracts
import clipfuse.testing.data_contracts  # noqa: F401  register their contracts
from clipfuse.fusion.registry import Rule, find_any
from clipfuse.testing.case import Case
from clipfuse.testing.contracts import CONTRACTS


def check_method(rule: str | Rule, /, **settings: Any) -> None:
    """Check a method, edit or finish against every contract that concerns it. Seconds.

    Args:
        rule: Its name, or the rule itself.
        settings: Needed for settings that have neither a default nor an example.

    Raises:
        AssertionError: a line for each contract that is broken: which one, and how.
        ConfigError: an unknown name, or settings that the rule does not take.
    """
    rule = find_any(rule) if isinstance(rule, str) else rule
    broken: list[AssertionError] = []
    for name in contracts_of(rule, **settings):
        try:
            check_contract(rule, name, **settings)
        except AssertionError as error:
            broken.append(error)
    if broken:
        raise AssertionError("\n".join(map(str, broken))) from broken[0].__cause__


def contracts_of(rule: Rule, /, **settings: Any) -> list[str]:
    """Names of the contracts that concern a rule."""
    case = Case.of(rule, settings)
    return [name for name, contract in CONTRACTS.items() if contract.concerns(case)]


def check_contract(rule: Rule, name: str, /, **settings: Any) -> None:
    """Check one contract. Raises AssertionError: one line that says which contract is broken, and how."""
    contract = CONTRACTS[name]
    try:
        contract.check(Case.of(rule, settings))
    except AssertionError as error:
        raise AssertionError(f"{rule.name} breaks {name} ({contract.promise}) {error}") from None
    except Exception as error:
        how = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{rule.name} breaks {name} ({contract.promise}) {how}") from error
