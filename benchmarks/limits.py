"""What a merge may take in the engine: from opened pool to written file, on two cores, without imports and config."""

import math
from dataclasses import dataclass

from clipfuse.fusion.chain import Chain

FLOOR = 1.5
"""Times the floor of reading and writing once, for element-wise rules that read the pool once."""
SECONDS = {
    **{"magmax": 5, "model_stock": 5, "dare+task_arithmetic": 5, "ties_merging": 8, "pcb_merging": 12},
    **{"iso_c": 15, "tsv_merging": 60, "iso_cts": 60, "wudi(solver=closed)": 60},
}
"""For eight ViT-B/32 experts, by chain."""
PRODUCTS = {"wudi": 1.2}
"""Times what its matrix products alone take, by chain."""
TIES_MEMORY, ELEMENT_MEMORY = 600, 300
MATRIX_MEMORY = {"b32": 1000, "b16": 1000, "l14": 2000}
"""MB above `import torch`: of chains that need whole parameters, by architecture."""


@dataclass(frozen=True)
class Limit:
    """What is asked of one chain; infinite where nothing is."""

    seconds: float = math.inf
    why: str = ""
    memory: float = math.inf
    """MB of anonymous memory above `import torch`."""


def limit(name: str, chain: Chain, arch: str | None, experts: int, floor: float, products: float | None) -> Limit:
    """The limits of a chain, given what the floor and wudi's products took in this run; of an unknown pool few."""
    element, memory = chain.grain == "element", math.inf
    if arch:
        memory = TIES_MEMORY if "ties_merging" in name else ELEMENT_MEMORY if element else MATRIX_MEMORY[arch]
    if name in PRODUCTS and products is not None:
        return Limit(PRODUCTS[name] * products, f"{PRODUCTS[name]} × its products' {products:.1f} s", memory)
    if (arch, experts) != ("b32", 8):
        return Limit(memory=memory)
    if name in SECONDS:
        return Limit(SECONDS[name], f"{SECONDS[name]} s", memory)
    if element and chain.passes == 1 and not chain.edits and not chain.finishes:
        return Limit(FLOOR * floor, f"{FLOOR} × floor = {FLOOR * floor:.2f} s", memory)
    return Limit(memory=memory)
