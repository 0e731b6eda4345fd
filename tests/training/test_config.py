"""Training settings: what is refused, and what defaults mean."""
import dataclasses

import pytest

from peftkit import TrainConfig
from peftkit.errors import PeftkitError


@pytest.mark.parametrize("settings, message", [
    ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'. accepted: cosine, linear, constant"),
    ({"precision": "fp16"}, "unknown precision 'fp16'.* accepted: .*fp32"),
    ({"epochs": 0}, "epochs is 0; accepted: a number above 0"),
    ({"epochs": "3"}, "epochs is '3'; accepted: a number above 0"),
    ({"batch_size": 2.5}, "batch_size is 2.5; accepted: a whole number above 0"),
    ({"accumulation": 0}, "accumulation is 0; accepted: a whole number above 0"),
    ({"max_length": -1}, "max_length is -1; accepted: a whole number above 0"),
    ({"learning_rate": float("nan")}, "learning_rate is nan; accepted: a number above 0"),
    ({"connector_learning_rate": 0}, "connector_learning_rate is 0; accepted: a number above 0"),
    ({"max_grad_norm": None}, "max_grad_norm is None; accepted: a number above 0"),
    ({"warmup_ratio": 1}, "warmup_ratio is 1; accepted: 0 up to, not including, 1"),
])
def test_wrong_settings_are_named_with_what_is_accepted(settings, message):
    with pytest.raises(PeftkitError, match=message):
        TrainConfig(**settings)


def test_the_connector_learns_at_a_tenth_unless_told():
    assert TrainConfig(learning_rate=2e-4).connector_rate == pytest.approx(2e-5)
    assert TrainConfig(learning_rate=2e-4, connector_learning_rate=1e-3).connector_rate == 1e-3


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 1


def test_part_of_an_epoch_is_allowed():
    assert TrainConfig(epochs=0.5).epochs == 0.5
