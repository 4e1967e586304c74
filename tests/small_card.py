"""A device that runs out of memory, for tests on a processor."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from finetune import footprint


class SmallCard(footprint.Kept):
    """Has no room for more than so many bytes that are kept for the backward pass."""

    def __init__(self, network: nn.Module, limit: int) -> None:
        super().__init__(network)
        self.limit = limit

    def hold(self, tensor: Tensor) -> None:
        """Keep a tensor. Raises: torch.OutOfMemoryError, as a GPU does, when there is no room for it."""
        super().hold(tensor)
        if self.now > self.limit:
            self.let_go(tensor)
            raise torch.OutOfMemoryError(f"{self.limit} bytes are not enough for what autograd keeps")


@contextmanager
def small_card(network: nn.Module, limit: int) -> Iterator[SmallCard]:
    """Let every forward pass of a network run out of memory when it keeps more than so many bytes."""
    card = SmallCard(network, limit)
    with card.counting():
        yield card
