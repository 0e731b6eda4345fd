"""Processors of the bundled bases: transformers' own classes around a word-level tokenizer of the drawn world."""
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics2.processing_idefics2 import Idefics2Processor

from ..data.scenes import SIZE
from ..data.sprites import CELL
from ..data.vocabulary import SPECIAL, vocabulary
from .recipes import IMAGE_TOKENS, Recipe

# A conversation of one turn: <s> user <image> question assistant answer </s>
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]), padding_side="left", clean_up_tokenization_spaces=False)


def build_processor(recipe: Recipe) -> LlavaProcessor | Idefics2Processor:
    """The processor of a recipe; it survives `save_pretrained` and `AutoProcessor.from_pretrained`."""
    if recipe.kind == "llava":
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
        return LlavaProcessor(image_processor, _tokenizer(), patch_size=CELL, num_additional_image_tokens=1,
                              vision_feature_select_strategy="default", chat_template=CHAT_TEMPLATE)
    image_processor = Idefics2ImageProcessorPil(
        size={"longest_edge": SIZE, "shortest_edge": SIZE}, do_image_splitting=False)
    return Idefics2Processor(image_processor, _tokenizer(), image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)
