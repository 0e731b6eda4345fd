"""Compiled steps: the losses of plain ones, and a clear word where nothing can be compiled."""
import copy
import shutil

import pytest

import peftkit
from peftkit.errors import PeftkitError
from peftkit.training.compiled import compiled
from peftkit.training.last_block import plain_blocks


def losses(base, **settings):
    task = peftkit.task("vqav2", train_size=12, validation_size=1, test_size=1, questions=3)
    model = peftkit.inject(copy.deepcopy(base.model), "lora", connector="tuned")
    config = peftkit.TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, progress=False, **settings)
    return peftkit.train(model, base.processor, task.train, config, prompt=task.prompt).losses


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_steps_have_the_losses_of_plain_ones(tiny_llava):
    expected = losses(tiny_llava)
    assert losses(tiny_llava, compile=True) == pytest.approx(expected, abs=1e-4) and len(set(expected)) == 6


def test_blocks_are_as_they_were_afterwards(tiny_llava):
    model = copy.deepcopy(tiny_llava.model)
    with compiled(model):
        *others, last = plain_blocks(model)
        assert all(block._compiled_call_impl for block in others) and last.compiled_tail
    assert not any(block._compiled_call_impl for block in others) and not hasattr(last, "compiled_tail")


def test_without_a_compiler_it_is_refused(tiny_llava, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PeftkitError, match=r"no C\+\+ compiler; accepted: False, or a g\+\+ on the PATH"):
        losses(tiny_llava, compile=True)
