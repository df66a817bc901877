"""Images and CTFs of chance, for networks that only have to take them."""

import torch


def random_input(n: int, box: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ctf = torch.randn(n, box, box // 2 + 1, generator=generator).clamp(-1, 1)
    return torch.randn(n, box, box, generator=generator), ctf
