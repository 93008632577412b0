"""Language models that ship with the workbench, as pure `nn.Module`s.

A file of their own: the digest of a network covers the text of its file, so that a network put beside others would have all
runs with those computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CausalBlock", "SmallGPT"]


class CausalBlock(nn.Module):
    """Pre-norm transformer block: attention to earlier tokens, then a perceptron four times as wide, each added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(4 * width, width)

    def extra_repr(self) -> str:
        """Number of heads."""
        return f"heads={self.heads}"

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, token, width) -> (n, token, width)."""
        n, token, width = hidden.shape
        split = self.attention_in(self.norm1(hidden)).reshape(n, token, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_out(mixed.transpose(1, 2).reshape(n, token, width))
        out: Tensor = hidden + self.contract(self.gelu(self.expand(self.norm2(hidden))))
        return out


class SmallGPT(nn.Module):
    """A small causal language model: ids (n, token) -> logits of the next token (n, token, vocabulary).

    Learned positions, pre-norm `blocks`, a last norm, and a head tied to the embedding (Radford et al. 2019, GPT-2).
    """

    def __init__(self, vocabulary: int, blocks: int = 4, width: int = 64, heads: int = 4, context: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([CausalBlock(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, token_id: Tensor) -> Tensor:
        """Logits (n, token, vocabulary)."""
        hidden = self.embedding(token_id) + self.position(torch.arange(token_id.shape[1], device=token_id.device))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits
