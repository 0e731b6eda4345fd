"""Trained copies of chosen parameters, dense once they are used and packed after transformers has loaded them."""
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Weights(nn.Module):
    """Trained copies of some parameters of a module, under their path with "/" for ".".

    Where the number of kept entries is given, a copy is packed until it is first used: transformers' `load_adapter`
    fills buffers of the shapes that are in the file.
    """

    def __init__(self, copies: dict[str, nn.Parameter], kept: dict[str, int], trainable: bool):
        super().__init__()
        self.trainable = trainable
        for path, copy in copies.items():
            if path in kept:
                bits = torch.zeros(-(-copy.numel() // 8), dtype=torch.uint8, device=copy.device)
                self.register_buffer(f"{flat(path)}_bits", bits)
                self.register_buffer(f"{flat(path)}_values", torch.zeros(kept[path], device=copy.device))
            else:
                self.put(path, copy)

    def put(self, path: str, copy: nn.Parameter) -> None:
        """Let `copy` be what is trained for a path, in the place of what was there, packed or not."""
        for name in (f"{flat(path)}_bits", f"{flat(path)}_values"):
            self._buffers.pop(name, None)
        self.register_parameter(flat(path), copy)

    def packed(self) -> list[str]:
        """Paths whose copies are still packed."""
        return [name.removesuffix("_bits").replace("/", ".") for name in self._buffers if name.endswith("_bits")]

    def bits_and_values(self, path: str) -> tuple[Tensor, Tensor]:
        """What is packed for a path."""
        return self.get_buffer(f"{flat(path)}_bits"), self.get_buffer(f"{flat(path)}_values")

    def items(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(path in the base, trained copy)"""
        return ((name.replace("/", "."), parameter) for name, parameter in self._parameters.items())


def flat(path: str) -> str:
    """A parameter's path as an attribute's name."""
    return path.replace(".", "/")
