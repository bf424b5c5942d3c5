"""A network whose weights, gradients and moments are shared out among devices (FSDP2; Zhao et al., 2023)."""

import copy

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from cssformer.backbones import merged
from cssformer.model import SegmentationNetwork
from cssformer.training.module import SegmentationTask

LEAST = 2**14
"""Parameters of a block that is gathered by itself."""


class ShardedTask(SegmentationTask):
    """Each device keeps a part of every weight, and gathers those of a block of the backbone while it computes it.

    Machines share nothing out among each other: each holds all parts. What is validated and saved is a whole copy.
    """

    @property
    def plain(self) -> SegmentationNetwork:
        return merged(self.copy[0]) if hasattr(self, "copy") else super().plain

    def configure_model(self) -> None:
        # FSDP takes no other layout.
        self.model.backbone.to(memory_format=torch.contiguous_format)
        # In a tuple, because its weights are none of those that learn.
        self.copy = (copy.deepcopy(self.model),)
        containers = [part for part in self.backbone[0].modules() if isinstance(part, nn.Sequential | nn.ModuleList)]
        blocks = [block for container in containers for block in container]
        large = [block for block in blocks if sum(parameter.numel() for parameter in block.parameters()) >= LEAST]
        # From the inside out.
        for part in (*reversed(large), self.model):
            fully_shard(part, mesh=self.device_mesh)

    def whole(self) -> SegmentationNetwork:
        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        self.copy[0].to(self.device).eval().load_state_dict(state)
        return self.plain

    def on_validation_end(self) -> None:
        del self.scored, self.validated
        self.copy[0].cpu()
