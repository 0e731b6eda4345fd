"""The recipes of the bundled bases: real classes, distinct sizes, and a tower that is read as the model reads it."""
import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from peftkit.data import encode, task
from peftkit.data.scenes import sample_scenes
from peftkit.data.vocabulary import vocabulary
from peftkit.models import architecture, region_of
from peftkit.zoo.mix import question_segment
from peftkit.zoo.recipes import RECIPES, Stage, model_config
from peftkit.zoo.stages import Pretraining, _normalize_tower

PICTURES = sample_scenes(np.random.default_rng(0), 6, "train").draw()


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_idefics2"])
def tiny(request):
    return request.getfixturevalue(request.param)


def pixels(tiny) -> dict[str, torch.Tensor]:
    """What the real processor makes of PICTURES."""
    images = [[Image.fromarray(picture)] for picture in PICTURES]
    inputs = tiny.processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
    return {name: value for name, value in inputs.items() if name.startswith("pixel_")}


# ---- sizes -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RECIPES)
def test_no_two_dimensions_that_peft_compares_are_equal(name):
    """peft takes the first tensor of vocabulary height for the word embedding, so nothing else may have it."""
    recipe, words = RECIPES[name], len(vocabulary())
    sizes = [words, recipe.width, recipe.mlp, recipe.vision_width, 4 * recipe.vision_width]
    assert len(set(sizes)) == len(sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(model_config(recipe))
    tall = [name for name, p in model.named_parameters() if words in p.shape]
    assert {region_of(architecture(model), name) for name in tall} == {"language", "head"}
    assert len(tall) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_real_classes_of_at_most_8_mb(name):
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(model_config(RECIPES[name]))
    kind = {"llava": "Llava", "idefics2": "Idefics2"}[RECIPES[name].kind]
    assert type(model) is getattr(transformers, f"{kind}ForConditionalGeneration")
    assert 4 * sum(p.numel() for p in model.parameters()) < 8e6
    assert not model.config.tie_word_embeddings and model.lm_head.weight is not model.get_input_embeddings().weight


# ---- processor -------------------------------------------------------------------------------------------------------

def test_the_processor_survives_a_round_trip(tiny, tmp_path):
    tiny.processor.save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(tiny.processor)
    assert again.chat_template == tiny.processor.chat_template
    texts = ["user <image> what color is the star ? assistant", "<image> unheard 7"]
    images = [[Image.fromarray(picture)] for picture in PICTURES[:2]]
    first, second = (processor(images=images, text=texts, padding=True, return_tensors="pt")
                     for processor in (tiny.processor, again))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "padding_side")
    assert all(getattr(again.tokenizer, s) == getattr(tiny.processor.tokenizer, s) for s in special)
    assert again.batch_decode(first["input_ids"]) == tiny.processor.batch_decode(first["input_ids"])


def test_every_word_is_a_token_and_decodes_to_itself(tiny):
    tokenizer = tiny.processor.tokenizer
    assert len(tokenizer) == len(vocabulary()) == tiny.model.config.text_config.vocab_size
    ids = tokenizer(" ".join(vocabulary()), add_special_tokens=False).input_ids
    assert ids == list(range(len(vocabulary())))
    assert tokenizer.decode([tokenizer.convert_tokens_to_ids("red"), tokenizer.eos_token_id],
                            skip_special_tokens=True) == "red"


def test_special_tokens_are_those_of_the_configuration(tiny):
    config, tokenizer = tiny.model.config, tiny.processor.tokenizer
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(config.text_config, name) == getattr(tokenizer, name)
        assert getattr(tiny.model.generation_config, name) == getattr(tokenizer, name)


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "ocrvqa", "caption", "dense_caption"])
def test_tasks_prompt_in_the_words_of_pre_training(tiny, name):
    """What `encode` makes of a row is the prefix of the stages and the prompt of the mix."""
    drawn = task(name, train_size=12, validation_size=1, test_size=1)
    encoded = encode(tiny.processor, drawn.train, drawn.prompt)
    rng, tokenizer = np.random.default_rng(0), tiny.processor.tokenizer
    template = question_segment(name, sample_scenes(rng, 1, "train").things(0), rng).prompt
    ending = template[template.index(drawn.prompt.replace("{question} ", "")):]
    fence = "" if tiny.recipe.kind == "llava" else "<fake_token_around_image>"
    for ids, row in zip(encoded.prompts, drawn.train):
        text = f"<s> user {fence} {'<image> ' * 9} {fence} {row['question']} {ending}"
        assert ids == tokenizer(text, add_special_tokens=False).input_ids


# ---- tower -----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_tower_features_are_what_the_connector_reads(tiny):
    model, read = tiny.model, []
    connector = model.get_submodule(architecture(model).connector)
    hook = connector.register_forward_pre_hook(lambda module, args, kwargs: read.append([*args, *kwargs.values()][0]),
                                               with_kwargs=True)
    try:
        model.get_image_features(**pixels(tiny))
    finally:
        hook.remove()
    features = Pretraining(tiny.recipe, model, tiny.processor).tower_features(PICTURES)
    assert features.shape == (len(PICTURES), 9, 96)
    assert torch.allclose(features, read[0], atol=1e-5)


@torch.no_grad()
def test_normalizing_the_tower_scales_its_features_and_nothing_else(tiny_llava):
    model = copy.deepcopy(tiny_llava.model)
    pretraining = Pretraining(tiny_llava.recipe, model, tiny_llava.processor)
    before = pretraining.tower_features(PICTURES, every_layer=True)
    pooled = model.model.vision_tower(**pixels(tiny_llava)).pooler_output
    _normalize_tower(model.model.vision_tower, 5.0)
    after = pretraining.tower_features(PICTURES, every_layer=True)
    for first, second in zip(before, after):
        assert torch.allclose(second, first / 5, atol=1e-3 * first.std().item() / 5)
    assert torch.allclose(model.model.vision_tower(**pixels(tiny_llava)).pooler_output, pooled, atol=5e-3)


# ---- stages ----------------------------------------------------------------------------------------------------------

def test_each_stage_trains_its_own_regions(tiny):
    """Three steps of every stage: what changes is what the stage is for."""
    short = Stage(3, 1e-3, 4)
    recipe = dataclasses.replace(tiny.recipe, vision=short, language=short, alignment=short, instruction=short)
    model = copy.deepcopy(tiny.model)
    pretraining = Pretraining(recipe, model, tiny.processor, progress=False)
    stages = {"vision": {"vision"}, "language": {"language", "head"}, "alignment": {"connector"},
              "instruction": {"connector", "language", "head"}}
    for name, regions in stages.items():
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        getattr(pretraining, f"{name}_stage")()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert {region_of(architecture(model), n) for n in changed} == regions
        assert pretraining.log[name]["steps"] == 3 and np.isfinite(pretraining.log[name]["final_loss"])
