"""Segmenter's mask transformer (Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, section
3.2), written here because no library has it on a pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskTransformer(nn.Module):
    """Patches and one token per class attend to each other; a class's mask is its likeness to each patch.

    The original looks at a ViT, whose one map has stride 16. The pyramid's deepest map is up-sampled to that.

    First weights are the authors': linear layers normal with a deviation of 0.02, the last two of width^-0.5.

    Args:
        channels: of the map.
        num_classes: of the logits.
        width: of the transformer, 64 for each of its heads.
        depth: its layers.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.cls_emb = nn.Parameter(torch.empty(1, num_classes, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.1, F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.patch = nn.Linear(width, width, bias=False)
        self.mask = nn.Linear(width, width, bias=False)
        self.scale = nn.LayerNorm(num_classes)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)
        for layer in (self.patch, self.mask):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps of a pyramid, of which the deepest, (B, C, H, W), is looked at -> logits (B, num_classes, 2H, 2W)."""
        deepest = F.interpolate(features[-1], scale_factor=2, mode="bilinear")
        size, count = deepest.shape[2:], self.cls_emb.shape[1]
        patches = self.project(deepest.flatten(2).transpose(1, 2))
        tokens = torch.cat([patches, self.cls_emb.expand(len(patches), -1, -1).to(patches.dtype)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        patches, classes = self.norm(tokens).split([patches.shape[1], count], dim=1)
        likeness = self.likeness(patches, classes)
        return self.scale(likeness).transpose(1, 2).unflatten(2, size)

    def likeness(self, patches: Tensor, classes: Tensor) -> Tensor:
        """Cosine of (B, N, width) and (B, K, width), each through its own linear layer: (B, N, K)."""
        return F.normalize(self.patch(patches), dim=-1) @ F.normalize(self.mask(classes), dim=-1).transpose(1, 2)
