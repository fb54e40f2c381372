"""The block of a plain pre-norm transformer. Legend: B images, T tokens, D width."""

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from polygrain.backbones.droppath import DropPath
from polygrain.nn.linear import Linear


class TransformerBlock(nn.Module):
    """x + drop(attention(norm(x))), then x + drop(mlp(norm(x))), the hidden layer 4 D wide."""

    def __init__(self, width: int, heads: int, drop_path: float, name: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp1 = Linear(width, 4 * width)
        self.mlp2 = Linear(4 * width, width)
        self.drop1 = DropPath(drop_path, f"{name} attention")
        self.drop2 = DropPath(drop_path, f"{name} mlp")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to the same shape."""
        x_BTD = x_BTD + self.drop1(self._attention(self.norm1(x_BTD)))
        added: Tensor = self.drop2(self.mlp2(gelu(self.mlp1(self.norm2(x_BTD)))))
        return x_BTD + added

    def _attention(self, x_BTD: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.projection(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed
