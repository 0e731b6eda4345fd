"""Six architectures behind one set of questions, and a process that knows nothing but `import peftkit`."""
import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

import peftkit

IGNORE = -100  # label of a position without a loss
WORDS = 40, 90  # ids that are words in every vocabulary
LONGEST = 16  # words of a row, at most
BASES = {"llava": "tiny_llava", "idefics2": "tiny_idefics2", "qwen2_vl": "qwen2_vl", "paligemma": "paligemma",
         "t5": "t5", "blip": "blip"}
IMAGE_TOKENS = {"llava": 9, "idefics2": 9, "qwen2_vl": 4, "paligemma": 4}
PICTURES = {"llava": (3, 48, 48), "idefics2": (1, 3, 48, 48), "qwen2_vl": (16, 96), "paligemma": (3, 16, 16),
            "blip": (3, 16, 16)}
WORKER = """
import copy, sys
from pathlib import Path
import peftkit
import peft, torch, transformers
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
bases = {}
for line in sys.stdin:
    kind, base, adapter, answer = line.split()
    try:
        if base not in bases:
            bases[base] = getattr(transformers, kind).from_pretrained(base).eval()
        model, seen = peft.PeftModel.from_pretrained(copy.deepcopy(bases[base]), adapter).eval(), []
        for name, module in model.named_modules():
            if name.endswith("text_decoder"):
                module.register_forward_hook(lambda module, args, output: seen.append(output.logits))
        with torch.no_grad():
            output = model(**torch.load(Path(base) / "inputs.pt"))
        torch.save(seen[0] if seen else output.logits, answer)
        print("done", flush=True)
    except Exception as error:
        print(repr(error).replace(chr(10), " "), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """An architecture. base: the model, never changed; folder: where it is saved, with the inputs of two rows."""

    name: str
    base: nn.Module
    folder: Path

    @property
    def decodes(self) -> bool:
        """Whether a decoder of its own writes the answer."""
        return self.name in ("t5", "blip")

    def inputs(self, *lengths: int, side: str = "right", seed: int = 0, positions: bool = False) -> dict[str, Tensor]:
        """Rows of a picture and `length` words, padded on a side; with positions, they are counted by the mask."""
        generator = torch.Generator().manual_seed(seed)
        image = torch.full((IMAGE_TOKENS.get(self.name, 0),), getattr(self.base.config, "image_token_id", -1))
        words = torch.randint(*WORDS, (len(lengths), LONGEST + 4), generator=generator)
        rows = [torch.cat([image, row[:length]]) for row, length in zip(words, lengths)]
        ids, mask = (nn.utils.rnn.pad_sequence(values, batch_first=True, padding_side=side)
                     for values in (rows, list(map(torch.ones_like, rows))))
        made = {"input_ids": ids, "attention_mask": mask}
        if self.decodes:
            made["decoder_input_ids"] = words[:, LONGEST:]
        if self.name in PICTURES:
            pictures = torch.randn(len(lengths), *PICTURES[self.name], generator=generator)
            made["pixel_values"] = pictures.flatten(0, 1) if self.name == "qwen2_vl" else pictures
        if self.name == "qwen2_vl":
            made["mm_token_type_ids"] = (ids == image[0]).long()
            made["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(ids))
        if self.name == "paligemma":
            made["token_type_ids"] = torch.zeros_like(ids)
        if positions and self.name in ("llava", "idefics2", "paligemma"):  # the other types take none, or count so
            made["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + (self.name == "paligemma")
        return made

    @torch.no_grad()
    def logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """(rows, length, vocabulary), of the decoder's words if there is a decoder, never of a prompt's positions."""
        length = inputs["decoder_input_ids" if self.decodes else "input_ids"].shape[1]
        if self.name != "blip":
            return model(**inputs).logits[:, -length:]
        seen = []  # BLIP keeps its decoder's logits to itself
        decoder = next(module for name, module in model.named_modules() if name.endswith("text_decoder"))
        watching = decoder.register_forward_hook(lambda module, args, output: seen.append(output.logits))
        model(**inputs)
        watching.remove()
        return seen[0]

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The model's own loss on words."""
        inputs = dict(inputs)
        ids = inputs.pop("decoder_input_ids") if self.decodes else inputs["input_ids"]
        return model(**inputs, labels=ids.where(ids >= WORDS[0], IGNORE)).loss

    def generated(self, model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> tuple[Tensor, Tensor]:
        """What greedy `generate` adds: tokens (rows, tokens), and the logits that it chose them by."""
        inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
        image = [self.base.config.image_token_id] if self.name in IMAGE_TOKENS else None
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, suppress_tokens=image,
                                return_dict_in_generate=True, output_logits=True)
        return output.sequences[:, -tokens:], torch.stack(output.logits, dim=1)

    def decoded(self, model: nn.Module, inputs: dict[str, Tensor], tokens: int) -> tuple[Tensor, Tensor]:
        """The same by a forward pass over the whole sequence for each token."""
        inputs, rows = dict(inputs), len(inputs["input_ids"])
        longer = {"input_ids": None, "attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 1}  # None: itself
        if self.decodes:
            first, longer = {"t5": 0, "blip": 1}[self.name], {"decoder_input_ids": None}
            inputs["decoder_input_ids"] = torch.full((rows, 1), first)
        new, logits = [], []
        for _ in range(tokens):
            logits.append(self.logits(model, inputs)[:, -1])
            allowed = logits[-1].clone()
            if self.name in IMAGE_TOKENS:
                allowed[:, self.base.config.image_token_id] = -torch.inf
            new.append(allowed.argmax(-1))
            for name, value in longer.items():
                if name in inputs:
                    value = new[-1] if value is None else torch.full((rows,), value)
                    inputs[name] = torch.cat([inputs[name], value[:, None]], dim=1)
        return torch.stack(new, dim=1), torch.stack(logits, dim=1)


class FreshProcess:
    """A Python that imports peftkit and then peft, and loads saved adapters as any user would."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], cwd=Path(peftkit.__file__).parents[1],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def logits(self, case: Case, adapter: Path) -> Tensor:
        """Of the case's two rows, by `peft.PeftModel.from_pretrained`."""
        answer = adapter / "logits.pt"
        print(type(case.base).__name__, case.folder, adapter, answer, file=self.process.stdin, flush=True)
        report = self.process.stdout.readline().strip()
        assert report == "done", report
        return torch.load(answer)


@pytest.fixture(scope="session")
def fresh_process():
    """One for all tests: importing takes seconds."""
    fresh = FreshProcess()
    yield fresh
    fresh.process.stdin.close()
    fresh.process.wait()
    fresh.process.stdout.close()


@torch.no_grad()
def _leave_zeros_and_ones(base: nn.Module) -> None:
    """Move all weights a little: with new biases and norms, much that is wrong would change nothing."""
    generator = torch.Generator().manual_seed(2)
    for parameter in base.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session", params=BASES)
def case(request, tmp_path_factory):
    """Each architecture in turn, with a copy of its tiny model that never ends a sentence."""
    name = request.param
    base = copy.deepcopy(request.getfixturevalue(BASES[name]).model)
    if name == "t5":  # the cache of transformers 5.23 has as many layers as the encoder, so the decoder gets fewer
        config = transformers.T5Config(**base.config.to_dict() | {"num_layers": 3, "num_decoder_layers": 2})
        base = transformers.T5ForConditionalGeneration(config).eval()
    if name == "blip":  # it asks its configuration where a sentence ends
        base.config.text_config.sep_token_id = -1
    base.generation_config.eos_token_id = None
    _leave_zeros_and_ones(base)
    case = Case(name, base, tmp_path_factory.mktemp(name))
    base.save_pretrained(case.folder)
    torch.save(case.inputs(6, 6), case.folder / "inputs.pt")
    return case
