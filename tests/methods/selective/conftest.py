"""A toy network of four selected tensors, and a way to train it by hand."""
import peft
import pytest
import torch
from torch import nn

import peftkit
from peftkit.data.collate import encode
from peftkit.methods.selective.tuner import SelectiveConfig


@pytest.fixture
def toy():
    """A function from a rule's name (or None) and its options to a peft model around a network of 7, 5 and 3 units, all
    of whose weights and biases are selected."""
    def make(rule=None, dtype=torch.float32, sparse=False, **options):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        return peft.get_peft_model(network, SelectiveConfig(
            sites={"weights": r"[02]\.(weight|bias)"}, rule=rule, rule_options=options, sparse=sparse))
    return make


@pytest.fixture
def batches():
    """Eight pairs of inputs (4, 7) and targets (4, 3)."""
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 7, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(8)]


@pytest.fixture
def step():
    """A function that does one step of training by hand: backward, the rule's first half, the optimizer, its second."""
    def one(model, rule, optimizer, batch):
        inputs, targets = batch
        nn.functional.mse_loss(model(inputs), targets).backward()
        rule.after_backward()
        optimizer.step()
        rule.after_step()
        optimizer.zero_grad()
    return one


@pytest.fixture(scope="session")
def rows(tiny_llava):
    """Eight rows of a task, encoded by the tiny LLaVA's processor."""
    task = peftkit.task("vqav2", train_size=8, validation_size=1, test_size=1)
    return encode(tiny_llava.processor, task.train, task.prompt)
