"""The block that combines a feature with its neighbours (Mugs section 3). Legend: R groups of G members, D width."""

from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

from polygrain.backbones.transformer import TransformerBlock
from polygrain.nn.linear import linear_map


class Relation(TransformerBlock):
    """A transformer block without drop path that computes its first output token only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, 0.0, "relation")

    def forward(self, tokens_RGD: Tensor) -> Tensor:
        """[R, G, D] to [R, D]."""
        (rows, members, width), heads = tokens_RGD.shape, self.heads
        first_R1D, normed_RGD = tokens_RGD[:, :1], self.norm1(tokens_RGD)
        weight, bias = self.qkv.weight, self.qkv.bias
        query = linear_map(normed_RGD[:, :1], weight[:width], bias[:width]).view(rows, 1, heads, -1).transpose(1, 2)
        rest = linear_map(normed_RGD, weight[width:], bias[width:]).view(rows, members, 2, heads, -1)
        key, value = rest.permute(2, 0, 3, 1, 4)
        mixed_R1D = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        first_R1D = first_R1D + self.projection(mixed_R1D)
        output_R1D: Tensor = first_R1D + self.mlp2(gelu(self.mlp1(self.norm2(first_R1D))))
        return output_R1D[:, 0]
