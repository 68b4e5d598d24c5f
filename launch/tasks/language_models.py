"""Two small language models: an LSTM as in the paper's Penn Treebank experiment, and a GPT."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["GPT", "LSTM", "Hidden"]

Hidden = tuple[torch.Tensor, torch.Tensor]


class LSTM(nn.Module):
    """Embedding, LSTM layers, and an output layer that shares the embedding's weight.

    `forward(tokens, hidden)` takes tokens of shape (T, B) and returns scores (T, B, vocabulary) and the new state.
    """

    def __init__(self, vocabulary: int, width: int, num_layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: torch.Tensor, hidden: Hidden) -> tuple[torch.Tensor, Hidden]:
        output, hidden = self.lstm(self.dropout(self.embedding(tokens)), hidden)
        return self.head(self.dropout(output)), hidden

    def empty_hidden(self, batch: int) -> Hidden:
        """Zero state for `batch` streams."""
        zeros = self.embedding.weight.new_zeros(self.lstm.num_layers, batch, self.lstm.hidden_size)
        return zeros, zeros.clone()


class GPT(nn.Module):
    """A decoder-only transformer with learned positions and a tied output layer.

    `forward(tokens)` takes tokens of shape (B, T) with T <= `context` and returns scores (B, T, vocabulary).
    """

    num_heads = 4

    def __init__(self, vocabulary: int, context: int, width: int = 128, num_layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, self.num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # the paths that end in a residual sum are scaled down, as in GPT-2
                nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5 if "project" in name else 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.embedding.weight)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project_attention = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.project_expanded = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project_attention(attention.transpose(1, 2).flatten(2))
        expanded = F.gelu(self.expand(self.norm2(x)))
        return torch.add(x, self.project_expanded(expanded))
