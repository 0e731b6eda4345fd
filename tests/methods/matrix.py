"""What the matrix is made of: a cell, training by hand, and the two tables of what cannot work.

Refusals: where `inject` says no, with words of the reason. LIMITS: one check of a cell that must fail as stated.
"""
import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import peftkit
from peftkit.methods import METHODS, rule_of

from .weights import perturb, trained

PROMPTS = ("prompt", "prefix-peft")  # peft's prompt learning: tokens outside the model, no layers inside
SELECTIVE = ("full", "language", "connector", "head", "layernorm", "bias", "spider", "random-mask", "magnitude-mask",
             "gradient-mask", "l2-sp", "half")
UNUSED = r"vision_tower\.(encoder\.layers\.2|post_layernorm)\b"  # by `full`: LLaVA reads CLIP's last layer but one
REGIONS = {  # that train, where they are not all of Method.regions
    ("full", "t5"): {"language"}, ("full", "paligemma"): {"vision", "connector", "language"},  # the head is tied
    ("adalink", "t5"): {"language"}, ("adalink", "blip"): {"language"},  # no image token enters the language model
}
REFUSED = {  # words of the reason
    ("connector", "t5"): "no connector",
    ("multiway", "t5"): "one modality", ("multiway", "blip"): "normalize after",
    ("prompt", "qwen2_vl"): "M-RoPE", ("prompt", "paligemma"): "bidirectional mask", ("prompt", "blip"): "read ids",
    ("prefix-peft", "qwen2_vl"): "M-RoPE", ("prefix-peft", "paligemma"): "bidirectional mask",
    ("prefix-peft", "blip"): "key-value cache",
}


@dataclass(frozen=True)
class Limit:
    """A check that must fail. note: why; match and error: how; stated: words in the method's docstring that say so."""

    check: str
    methods: tuple[str, ...]
    cases: tuple[str, ...]
    note: str
    match: str
    error: type[Exception] = AssertionError
    stated: str = ""
    connector: tuple[str, ...] = ("frozen", "tuned")


EVERY = ("llava", "idefics2", "qwen2_vl", "paligemma", "t5", "blip")
LIMITS = (
    Limit("start", PROMPTS, EVERY, "no identity at start: random tokens take part in every softmax",
          "moves the logits"),
    Limit("padding", ("prompt",), EVERY, "no padding equality: on the left, pads stand between prompt and text",
          "padding on the left", stated="left and right padding disagree"),
    Limit("padding", ("prefix-peft",), ("llava", "idefics2"), "no padding equality: on the left, pads stand between "
          "prefix and text", "padding on the left", stated="left and right padding disagree"),
    Limit("padding", tuple(METHODS), ("blip",), "no padding equality in the base itself: its decoder reads the "
          "question's pads (transformers 5.23 drops the mask), and positions count from the left edge",
          "padding on the right"),
    Limit("status", PROMPTS, EVERY, "no model status: peft has none for prompt learning", "not supported", TypeError),
    Limit("transformers", PROMPTS, EVERY, "no loading by transformers: it has no prompt learning",
          "not support prompt learning", ValueError),
    Limit("transformers", ("dora",), EVERY, "no loading by transformers: it drops the magnitudes, whose name in the "
          "file only peft knows",
          "transformers gives other logits"),
    Limit("merging", PROMPTS, EVERY, "no merge: peft has none for prompt learning", "merge_and_unload", AttributeError),
    Limit("merging", ("adalink",), ("idefics2",), "no merge: no linear layer ends the connector", "no linear layer",
          ValueError, connector=("frozen",)),
    Limit("merging", ("bias",), ("llava", "idefics2", "paligemma", "t5"), "no merge: the base has no biases",
          "an added bias cannot be merged", ValueError),
    Limit("merging", ("ia3",), ("idefics2",), "no merge: peft's IA3 cannot put back a connector with weights at "
          "several depths", "has no attribute 'weight'", AttributeError, connector=("tuned",)),
    Limit("disabling", PROMPTS, EVERY, "no way back to the base: disabling leaves a tuned connector on", "disabled",
          stated="disabling leaves a tuned connector on", connector=("tuned",)),
)


def expected_regions(cell):
    """The regions that must train."""
    own = REGIONS.get((cell.method, cell.case.name), set(METHODS[cell.method].regions))
    return own | {"connector"} if cell.connector == "tuned" else own


def refusal(cell):
    """Words of the reason with which `inject` must refuse a cell, or None."""
    tuned = cell.connector == "tuned"
    own = REFUSED.get((cell.method, cell.case.name))
    if own or not tuned:
        return own
    if cell.method == "side":
        return "gradients never enter"
    if cell.case.name == "t5":
        return "no picture"
    return "cross-attention" if cell.case.name == "blip" and cell.method not in SELECTIVE else None


def limits(cell):
    """Check name -> the limit that holds in a cell."""
    return {limit.check: limit for limit in LIMITS if cell.method in limit.methods and cell.case.name in limit.cases
            and cell.connector in limit.connector}


@dataclass
class Cell:
    """A method on an architecture, and what its checks share."""

    case: object
    method: str
    folder: Path
    fresh_process: object
    connector: str = "frozen"

    @cached_property
    def new(self):
        """The model right after injection, never changed."""
        return peftkit.inject(copy.deepcopy(self.case.base), self.method, connector=self.connector).eval()

    @cached_property
    def model(self):
        """The model with its trainable weights moved, as by training."""
        return perturbed(self.new)

    @cached_property
    def inputs(self):
        return self.case.inputs(6, 6)

    def logits(self, model):
        return self.case.logits(model, self.inputs)

    @cached_property
    def expected(self):
        return self.logits(self.model)

    @cached_property
    def saved(self):
        self.model.save_pretrained(self.folder / "adapter")
        return self.folder / "adapter"


def perturbed(model):
    """A copy whose trainable weights have moved away from their start."""
    return perturb(copy.deepcopy(model))


class Run:
    """Training by hand: AdamW, and the update rule where the method has one."""

    def __init__(self, case, model):
        self.case, self.model, self.rule = case, model.train(), rule_of(model)
        self.optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)

    def steps(self, *seeds):
        for seed in seeds:
            self.case.loss(self.model, self.case.inputs(6, 6, seed=seed)).backward()
            if self.rule:
                self.rule.after_backward()
            self.optimizer.step()
            if self.rule:
                self.rule.after_step()
            self.optimizer.zero_grad()

    def state(self):
        return {"optimizer": self.optimizer.state_dict(), "rule": self.rule.state_dict() if self.rule else {}}

    def load(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rule:
            self.rule.load_state_dict(state["rule"])


def same(one, other):
    """Whether two nested states are equal bit for bit."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if torch.is_tensor(one) else one == other
