"""What is trainable in a model, and ways to give it values that show a mistake."""
import torch


def trained(model):
    """Name -> parameter of what is trainable."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def stir(model, seed=1, *, scale=1.0):
    """Give what is trainable random values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def perturb(model, scale=0.05, seed=1):
    """Move what is trainable away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model
