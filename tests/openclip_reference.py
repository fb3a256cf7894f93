"""OpenCLIP's ViT written down once more, from its definition: what features of its state dict are."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, multi_head_attention_forward


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@torch.no_grad()
def image_features(weights: Mapping[str, Tensor], pixels: Tensor, heads: int, quick: bool = True) -> Tensor:
    """(B, embed): `visual(pixels)` of a state dict with names from `visual.` on."""
    w = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    width = w["class_embedding"].shape[0]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = conv2d(pixels, w["conv1.weight"], stride=w["conv1.weight"].shape[-1]).flatten(2).mT
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre").transpose(0, 1)  # (token, B, width)
    for layer in range(sum(name.endswith("ln_1.weight") for name in w)):
        at = f"transformer.resblocks.{layer}"
        y = norm(x, f"{at}.ln_1")
        y, _ = multi_head_attention_forward(
            *(y, y, y, width, heads, w[f"{at}.attn.in_proj_weight"], w[f"{at}.attn.in_proj_bias"], None, None),
            *(False, 0.0, w[f"{at}.attn.out_proj.weight"], w[f"{at}.attn.out_proj.bias"]),
            training=False, need_weights=False,
        )  # fmt: skip
        x = x + y
        y = linear(norm(x, f"{at}.ln_2"), w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"])
        y = quick_gelu(y) if quick else gelu(y)
        x = x + linear(y, w[f"{at}.mlp.c_proj.weight"], w[f"{at}.mlp.c_proj.bias"])
    return norm(x[0], "ln_post") @ w["proj"]


def random_openclip(
    width: int = 16, layers: int = 2, patch: int = 4, grid: int = 2, embed: int = 8
) -> dict[str, Tensor]:
    """A random state dict as OpenCLIP saves one of a whole CLIP; the text side is smaller still."""
    random = torch.Generator().manual_seed(7)

    def draw(*shape: int, around: float = 0.0) -> Tensor:
        return around + 0.2 * torch.randn(*shape, generator=random)

    def block(at: str, width: int) -> dict[str, Tensor]:
        return {
            f"{at}.ln_1.weight": draw(width, around=1), f"{at}.ln_1.bias": draw(width),
            f"{at}.attn.in_proj_weight": draw(3 * width, width), f"{at}.attn.in_proj_bias": draw(3 * width),
            f"{at}.attn.out_proj.weight": draw(width, width), f"{at}.attn.out_proj.bias": draw(width),
            f"{at}.ln_2.weight": draw(width, around=1), f"{at}.ln_2.bias": draw(width),
            f"{at}.mlp.c_fc.weight": draw(4 * width, width), f"{at}.mlp.c_fc.bias": draw(4 * width),
            f"{at}.mlp.c_proj.weight": draw(width, 4 * width), f"{at}.mlp.c_proj.bias": draw(width),
        }  # fmt: skip

    found = {
        "visual.class_embedding": draw(width), "visual.positional_embedding": draw(grid**2 + 1, width),
        "visual.proj": draw(width, embed), "visual.conv1.weight": draw(width, 3, patch, patch),
        "visual.ln_pre.weight": draw(width, around=1), "visual.ln_pre.bias": draw(width),
        "visual.ln_post.weight": draw(width, around=1), "visual.ln_post.bias": draw(width),
        "positional_embedding": draw(5, 8), "token_embedding.weight": draw(11, 8), "text_projection": draw(8, embed),
        "ln_final.weight": draw(8, around=1), "ln_final.bias": draw(8), "logit_scale": torch.tensor(4.6052),
    }  # fmt: skip
    for layer in range(layers):
        found |= block(f"visual.transformer.resblocks.{layer}", width) | block(f"transformer.resblocks.{layer}", 8)
    return found
