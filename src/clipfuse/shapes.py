"""Shape annotations, `Float[Tensor, "task *shape"]`: jaxtyping's where it is loaded (in tests), else plain words."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int, UInt8
else:

    class Float:
        """Stands in for jaxtyping's annotation: the type alone, the shape for the reader."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Int = UInt8 = Float

__all__ = ["Bool", "Float", "Int", "UInt8"]
