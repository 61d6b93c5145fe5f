"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN_TOKENS = 1024  # up to so many tokens the CPU multiplies plain matrices: see `attend`


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, all of shape (B, heads, N, d).

    On a CPU, and for maps small enough that N x N numbers per head are cheap to keep, two plain matrix products are
    twice as fast as torch's fused kernel in bf16 (forwards and backwards together), and as fast in float32; without a
    gradient the fused kernel is up to twice as fast in float32.
    """
    fused = q.dtype == torch.float32 and not q.requires_grad
    if q.device.type == "cpu" and q.shape[2] <= PLAIN_TOKENS and not fused:
        return attend_plainly(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula of `attend` as it stands; softmax itself accumulates in float32."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v


class Attention(nn.Module):
    """x + W_o softmax(q k^T / sqrt(d)) v over all positions of a feature map, after group normalisation.

    channels      width of the map
    head_dim      d, the width of one head; None: one head of full width
    groups        groups of the normalisation; 0: none
    output_scale  the sum is divided by this number

    Raises `ValueError` if the heads do not divide the width. Source: Vaswani et al. 2017; Ho et al. 2020, appendix B.
    """

    def __init__(
        self,
        channels: int,
        *,
        head_dim: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim or channels
        if channels % self.head_dim:
            raise ValueError(f"heads of width {self.head_dim} do not divide {channels} channels")
        self.output_scale = output_scale
        self.norm = nn.GroupNorm(groups, channels, eps) if groups else nn.Identity()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        B, C, H, W = x.shape
        tokens: Tensor = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)  # a view where x is channels-last
        qkv = self.qkv(tokens).view(B, H * W, 3, C // self.head_dim, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H*W, d) each
        h: Tensor = attend(q, k, v)
        h = self.out(h.transpose(1, 2).reshape(B, H * W, C))
        h = h.view(B, H, W, C).permute(0, 3, 1, 2)  # (B, C, H, W)
        return (x + h) / self.output_scale if self.output_scale != 1.0 else x + h
