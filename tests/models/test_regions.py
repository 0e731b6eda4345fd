"""Every parameter of every supported model type belongs to exactly one region, the one that its module says."""
import re
from types import SimpleNamespace

import pytest
import transformers
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.models import ARCHITECTURES, REGIONS, architecture, region_modules, region_of

# Where transformers keeps the parts, written down a second time: model type -> region -> module paths.
PARTS = {
    "llava": {"vision": ["model.vision_tower"], "connector": ["model.multi_modal_projector"],
              "language": ["model.language_model"], "head": ["lm_head"]},
    "idefics2": {"vision": ["model.vision_model"], "connector": ["model.connector"],
                 "language": ["model.text_model"], "head": ["lm_head"]},
    "qwen2_vl": {"vision": ["model.visual.patch_embed", "model.visual.blocks"], "connector": ["model.visual.merger"],
                 "language": ["model.language_model"], "head": ["lm_head"]},
    "paligemma": {"vision": ["model.vision_tower"], "connector": ["model.multi_modal_projector"],
                  "language": ["model.language_model"], "head": ["lm_head"]},
    "blip": {"vision": ["vision_model"],
             "connector": [f"{part}.encoder.layer.{i}.crossattention" for i in range(2)
                           for part in ("text_encoder", "text_decoder.bert")],
             "language": ["text_encoder.embeddings", "text_decoder.bert.embeddings",
                          *(f"{part}.encoder.layer.{i}.{layer}" for i in range(2)
                            for part in ("text_encoder", "text_decoder.bert")
                            for layer in ("attention", "intermediate", "output"))],
             "head": ["text_decoder.cls"]},
    "t5": {"language": ["shared", "encoder", "decoder"], "head": ["lm_head"]},
}
BLOCKS = {"t5": [f"{part}.block.{i}" for part, blocks in (("encoder", 2), ("decoder", 3)) for i in range(blocks)],
          "blip": ["text_decoder.bert.encoder.layer.0", "text_decoder.bert.encoder.layer.1"],
          "idefics2": ["model.text_model.layers.0", "model.text_model.layers.1"]}


@pytest.fixture(params=["tiny_llava", "tiny_idefics2", "qwen2_vl", "paligemma", "blip", "t5"])
def model(request):
    return request.getfixturevalue(request.param).model


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def below(name: str, parts: list[str]) -> bool:
    return any(name.startswith(f"{part}.") for part in parts)


def test_the_fixtures_cover_every_supported_type():
    assert set(PARTS) == set(ARCHITECTURES)


def test_every_parameter_belongs_to_exactly_one_region(model):
    arch = architecture(model)
    for name in names_of(model):
        owners = [region for region, parts in PARTS[model.config.model_type].items() if below(name, parts)]
        assert [region_of(arch, name)] == owners, name


def test_every_region_holds_parameters_and_together_they_hold_all(model):
    arch = architecture(model)
    held = {region: [name for name in names_of(model) if region_of(arch, name) == region] for region in REGIONS}
    assert {region for region in REGIONS if held[region]} == set(PARTS[model.config.model_type]) == set(arch.patterns)
    assert sum(map(len, held.values())) == len(names_of(model))


def test_the_pattern_of_a_region_matches_its_parameters_and_no_others(model):
    arch = architecture(model)
    for region in arch.patterns:
        matched = [name for name in names_of(model) if re.fullmatch(arch.region(region), name)]
        assert matched == [name for name in names_of(model) if region_of(arch, name) == region]


def test_the_pattern_of_a_region_that_is_not_there_names_those_that_are(t5):
    with pytest.raises(PeftkitError, match="unknown region of this model type 'vision'; accepted: head, language"):
        architecture(t5.model).region("vision")


def test_the_merger_of_qwen_is_connector_though_it_lies_in_the_tower(qwen2_vl):
    arch = architecture(qwen2_vl.model)
    assert arch.connector == "model.visual.merger"
    assert region_of(arch, "model.visual.merger.mlp.0.weight") == "connector"
    assert region_of(arch, "model.visual.blocks.0.mlp.fc1.weight") == "vision"


def test_the_connector_path_is_the_connector_region(model):
    arch = architecture(model)
    if arch.connector is None:
        assert model.config.model_type in ("blip", "t5")
        return
    inside = {f"{arch.connector}.{name}" for name in names_of(model.get_submodule(arch.connector))}
    assert inside == {name for name in names_of(model) if region_of(arch, name) == "connector"}


# ---- layers of a block -----------------------------------------------------------------------------------------------

def blocks_of(model: nn.Module) -> list[str]:
    return BLOCKS.get(model.config.model_type) or [f"model.language_model.layers.{i}" for i in range(2)]


def test_the_blocks_are_those_of_the_language_model(model):
    matched = [name for name, _ in model.named_modules() if re.fullmatch(architecture(model).every_block, name)]
    assert matched == blocks_of(model)


def test_targets_are_the_linear_layers_of_every_block_and_nothing_else(model):
    arch = architecture(model)
    layers = (*arch.attention, *arch.mlp)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(arch.targets(layers), name)}
    inside = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)
              and any(name.startswith(f"{block}.") for block in blocks_of(model)) and ".crossattention." not in name}
    assert matched == inside and {region_of(arch, name) for name in matched} == {"language"}


@pytest.mark.parametrize("field", ["attention_module", "mlp_module", "mlp_norm"])
def test_every_block_has_the_modules_that_the_table_names(model, field):
    arch = architecture(model)
    if getattr(arch, field) is None:
        assert model.config.model_type in ("blip", "t5")
        return
    matched = [name for name, _ in model.named_modules() if re.fullmatch(arch.targets((getattr(arch, field),)), name)]
    extra = 3 if (model.config.model_type, field) == ("t5", "attention_module") else 0  # cross-attention
    assert len(matched) == len(blocks_of(model)) + extra


def test_text_image_and_context_are_modules(model):
    arch = architecture(model)
    assert isinstance(model.get_submodule(arch.text), nn.Embedding)
    assert (arch.image is None) == (arch.connector is None)
    for path in filter(None, (arch.image, arch.context)):
        model.get_submodule(path)


def test_the_last_blocks_lead_to_the_head(model):
    arch = architecture(model)
    blocks = [block for block in blocks_of(model) if block.startswith(arch.context)]
    last = len(blocks) - 1
    matched = [name for name in names_of(model) if re.fullmatch(arch.last_blocks([last]), name)]
    assert matched == [name for name in names_of(model) if name.startswith(f"{blocks[-1]}.")]


@pytest.mark.parametrize("prefix", ["base_model.", "base_model.model."])
def test_names_under_a_peft_wrapper_keep_their_region(model, prefix):
    arch = architecture(model)
    for name in names_of(model):
        assert region_of(arch, prefix + name) == region_of(arch, name)


def test_region_modules_finds_layers_by_their_last_name(tiny_llava):
    vision, language = (region_modules(tiny_llava.model, region, "[qk]_proj") for region in ("vision", "language"))
    assert len(vision) == 3 * 2 and all(name.startswith("model.vision_tower.") for name in vision)
    assert len(language) == 2 * 2 and all(name.startswith("model.language_model.") for name in language)
    assert region_modules(tiny_llava.model, "head", "lm_head") == ["lm_head"]
    assert region_modules(tiny_llava.model, "language", "proj") == []


# ---- refusals --------------------------------------------------------------------------------------------------------

def test_foreign_names_have_no_region(tiny_llava):
    arch = architecture(tiny_llava.model)
    for name in ("prompt_encoder.default.embedding.weight", "xlm_head.weight", "model.vision_tower_2.weight", ""):
        assert region_of(arch, name) is None


def test_an_unsupported_type_names_the_supported_ones():
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=11)
    with pytest.raises(PeftkitError, match="unknown model type 'gpt2'") as error:
        architecture(SimpleNamespace(config=config))
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_an_unknown_region_names_the_regions(tiny_llava):
    with pytest.raises(PeftkitError, match="unknown region 'visual'.*accepted: .*vision, connector, language, head"):
        region_modules(tiny_llava.model, "visual", ".*")
