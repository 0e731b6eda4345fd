"""Models and rows to measure on: the bundled tiny one, and shapes of real ones with random weights."""
import copy

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..data import Encoded, encode, task
from ..models import Base, load

SMALL = "tiny-llava-s"
PADDING = "look at the picture with care and then give a short answer of one word only please"


def shaped(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """A base with the processor and vocabulary of tiny-llava-s; all but that one have random weights.

    llava-576: 576 image tokens, language width 512, 8 layers. llava-1.5-7b: the sizes of llava-hf/llava-1.5-7b-hf.
    """
    small = load(SMALL)
    if name == SMALL:
        return small
    vision, text = {
        "llava-576": (dict(hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4),
                      dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8)),
        "llava-1.5-7b": (dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
                         dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)),
    }[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vocabulary = 32064 if name == "llava-1.5-7b" else small.model.config.text_config.vocab_size
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **vision),
        text_config=LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **text, **special),
        image_token_id=small.model.config.image_token_id, image_seq_length=576, tie_word_embeddings=False, **special)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    processor = copy.deepcopy(small.processor)
    processor.patch_size = 14
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    return Base(name, model.eval().requires_grad_(False), processor, "")


def rows_for(base: Base, pictures: int, questions: int) -> Encoded:
    """Questions about drawn pictures; about 30 tokens each for the shapes of real models, as real questions have."""
    drawn = task("vqav2", train_size=pictures * questions, test_size=1, questions=questions)
    return encode(base.processor, drawn.train, drawn.prompt if base.name == SMALL else f"{drawn.prompt} {PADDING}")
