"""The published way of a training step: CondViT in plain PyTorch, as OpenAI wrote CLIP's vision transformer.

Residual blocks of `nn.MultiheadAttention`, one call for each tower, a default AdamW; on a GPU float16 autocast with a
gradient scaler, on a CPU float32. Written from the description in arXiv 2306.02928 and CLIP's paper to be compared with
`CondViTModel`; its parameters are named as the published checkpoints are, so `from_published` reads its state dict.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    """CLIP's cheap GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP on (T, B, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class PublishedCondViT(nn.Module):
    """Images (B, 3, S, S) and, or not, category numbers (B,) -> raw embeddings (B, projection)."""

    def __init__(self, patch: int, width: int, layers: int, heads: int, projection: int, size: int, categories: int):
        super().__init__()
        std = width**-0.5
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(std * torch.randn(width))
        self.positional_embedding = nn.Parameter(std * torch.randn((size // patch) ** 2 + 1, width))
        self.c_embedding = nn.Embedding(categories, width)
        self.c_pos_embedding = nn.Parameter(std * torch.randn(1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.proj = nn.Parameter(std * torch.randn(width, projection))
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))

    def forward(self, images: Tensor, categories: Tensor | None = None) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        if categories is not None:
            condition = self.c_embedding(categories)[:, None] + self.c_pos_embedding  # (B, 1, D)
            x = torch.cat([x, condition], dim=1)
        x = self.transformer.resblocks(self.ln_pre(x).transpose(0, 1))  # (T, B, D), as CLIP has it
        return self.ln_post(x[0]) @ self.proj


class PublishedStep:
    """One training step on a batch of normalised float32 images, as its loader gives them.

    Args:
        model: on its device.
    """

    def __init__(self, model: PublishedCondViT):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.device = next(model.parameters()).device
        self.gpu = self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.gpu)

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast("cuda", torch.float16) if self.gpu else contextlib.nullcontext()

    def __call__(self, queries: Tensor, categories: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        queries, categories, targets = (x.to(self.device, non_blocking=True) for x in (queries, categories, targets))
        with self.autocast():
            rows = F.normalize(self.model(queries, categories), dim=-1)  # (B, P)
            columns = F.normalize(self.model(targets), dim=-1)  # (B, P): a second call
            logits = self.model.logit_scale.exp() * rows @ columns.T
            own = torch.arange(len(logits), device=self.device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        return loss.detach()
