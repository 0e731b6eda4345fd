"""Loading a base by name or folder, and every way in which that can go wrong."""
import json
import socket
import threading
import time

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import peftkit
from peftkit.errors import PeftkitError
from peftkit.models import ARCHITECTURES, Base, bundled_names, load, loading, manifest
from peftkit.models.loading import BUNDLED, HUB_FILES, HUB_TIMEOUT, weights_hash
from peftkit.zoo.processors import build_processor
from peftkit.zoo.recipes import RECIPES

NOWHERE = "peftkit-tests/no-such-model"
EXPECTED = ["tiny-llava-s", "tiny-llava-m", "tiny-idefics2"]


def build_tokenizer():
    """A tokenizer that was not yet saved with a processor, which would leave the processor's name in it."""
    return build_processor(RECIPES["tiny-llava-s"]).tokenizer


def build_paligemma_processor():
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    return transformers.PaliGemmaProcessor(images, build_tokenizer())


def build_blip_processor():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "red"]
    tokenizer = transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    return transformers.BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_llava, tiny_idefics2, paligemma, blip):
    """Model type -> a folder in the layout that `save_pretrained` writes."""
    processors = {"llava": tiny_llava.processor, "idefics2": tiny_idefics2.processor,
                  "paligemma": build_paligemma_processor(), "blip": build_blip_processor()}
    models = {"llava": tiny_llava, "idefics2": tiny_idefics2, "paligemma": paligemma, "blip": blip}
    made = {}
    for name, tiny in models.items():
        made[name] = tmp_path_factory.mktemp(name)
        tiny.model.save_pretrained(made[name])
        processors[name].save_pretrained(made[name])
    return made


@pytest.fixture
def llava_copy(folders, tmp_path):
    """A copy of the LLaVA folder that a test may spoil."""
    for file in folders["llava"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Name look-ups fail at once, and the cache is empty."""
    def fail(*args, **kwargs):
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


# ---- folders ---------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("name", ["llava", "idefics2", "paligemma", "blip"])
@torch.no_grad()
def test_a_folder_gives_the_model_and_its_processor(name, folders, request, no_network):
    fixture = request.getfixturevalue({"llava": "tiny_llava", "idefics2": "tiny_idefics2"}.get(name, name))
    base = load(str(folders[name]))
    assert isinstance(base, Base) and base.name == str(folders[name])
    assert type(base.model) is type(fixture.model) and not base.model.training
    assert base.architecture is ARCHITECTURES[name]
    assert isinstance(base.processor, transformers.ProcessorMixin)
    images, text = [[Image.new("RGB", (16, 16), "red")]], ["<image> what is red"]
    inputs = base.processor(images=images[0] if name == "blip" else images, text=text, return_tensors="pt")
    assert "pixel_values" in inputs and inputs["input_ids"].shape[0] == 1
    state = fixture.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in base.model.state_dict().items())


@torch.no_grad()
def test_a_loaded_model_gives_the_same_logits(folders, tiny_llava):
    base = peftkit.load(folders["llava"])
    inputs = base.processor(images=[[Image.new("RGB", (48, 48), "red")]], text=["user <image> assistant"],
                            return_tensors="pt")
    assert torch.equal(base.model(**inputs).logits, tiny_llava.model(**inputs).logits)


def test_dtype_and_device(folders):
    base = load(folders["llava"], dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert base.model.device.type == "cpu"


def test_loading_prints_no_warning(folders, capfd):
    load(folders["llava"])
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_the_hash_is_that_of_the_weights(folders, llava_copy):
    first = load(folders["llava"]).hash
    assert first == weights_hash(folders["llava"]) == weights_hash(llava_copy)
    file = llava_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert weights_hash(llava_copy) != first


# ---- bad folders -----------------------------------------------------------------------------------------------------

def test_a_folder_without_config(tmp_path):
    with pytest.raises(PeftkitError, match=r"has no config.json; accepted: a folder written by save_pretrained"):
        load(tmp_path)


def test_a_damaged_config(llava_copy):
    (llava_copy / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(PeftkitError, match="damaged config.json"):
        load(llava_copy)


def test_an_unsupported_type_names_the_supported_ones(tmp_path):
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=11)).save_pretrained(
        tmp_path)
    with pytest.raises(PeftkitError, match="unknown model type 'gpt2'") as error:
        load(tmp_path)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize("config", [{"model_type": "qwen", "auto_map": {"AutoConfig": "code.QWenConfig"}}, {}])
def test_a_type_that_transformers_does_not_know_is_refused_alike(tmp_path, config):
    """Such as Qwen-VL-Chat, whose folder would have its own code run."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PeftkitError, match="unknown model type .*accepted: .*qwen2_vl"):
        load(tmp_path)


def test_pickled_weights_are_never_read(llava_copy):
    (llava_copy / "model.safetensors").unlink()
    (llava_copy / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(PeftkitError, match=r"has no \*.safetensors"):
        load(llava_copy)


def test_a_folder_without_processor(tmp_path, tiny_llava):
    tiny_llava.model.save_pretrained(tmp_path)
    with pytest.raises(PeftkitError, match="has no processor that can be built here; accepted: .*save_pretrained"):
        load(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PeftkitError, match="has no processor that can be built here.*image processor"):
        load(tmp_path)


def test_a_processor_that_needs_torchvision_says_so(tmp_path, qwen2_vl):
    if transformers.utils.is_torchvision_available():
        pytest.skip("torchvision is here")
    qwen2_vl.model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(PeftkitError, match=r"needs torchvision; accepted: .*peftkit\[gpu\]"):
        load(tmp_path)


# ---- names -----------------------------------------------------------------------------------------------------------

def test_an_unknown_name_lists_the_bundled_ones_close_matches_first(monkeypatch, tmp_path):
    for name in EXPECTED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    with pytest.raises(PeftkitError, match="unknown model 'tiny-llava-x'; did you mean 'tiny-llava-") as error:
        load("tiny-llava-x")
    accepted = str(error.value).split("accepted: ")[1]
    assert all(name in accepted for name in (*EXPECTED, "a folder", "a hub name"))
    assert accepted.index("tiny-llava-s") < accepted.index("a folder")


def test_a_base_that_is_still_being_built_is_not_bundled(monkeypatch, tmp_path):
    for name in ("tiny-llava-s", ".tiny-llava-m.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    assert bundled_names() == ["tiny-llava-s"]


def test_manifest_of_an_unknown_base():
    with pytest.raises(PeftkitError, match="unknown bundled base 'tiny-gpt'"):
        manifest("tiny-gpt")


@pytest.mark.parametrize("name", ["some where/model", "user/model--x", "user/.git"])
def test_a_name_that_no_hub_can_have(name, no_network):
    with pytest.raises(PeftkitError, match="is no folder, and cannot be a hub name"):
        load(name)


# ---- the hub ---------------------------------------------------------------------------------------------------------

def test_a_hub_name_without_network_says_what_to_do(no_network):
    start = time.perf_counter()
    with pytest.raises(PeftkitError) as error:
        load(NOWHERE)
    assert time.perf_counter() - start < 10
    message = str(error.value)
    assert NOWHERE in message and "did not answer" in message
    assert f"hf download {NOWHERE} --local-dir FOLDER" in message and "bundled" in message


def test_a_look_up_that_never_ends_is_given_up(no_network, monkeypatch):
    """Firewalls that drop packets: neither the resolver nor a list of addresses keeps to a request's time limit."""
    assert HUB_TIMEOUT < 10
    over = threading.Event()
    monkeypatch.setattr(loading, "HUB_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(60))
    start = time.perf_counter()
    try:
        with pytest.raises(PeftkitError, match="did not answer.*TimeoutError"):
            load(NOWHERE)
        assert time.perf_counter() - start < 5
    finally:
        over.set()


def test_a_server_that_is_silent_is_given_up(no_network, monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(loading, "HUB_TIMEOUT", 0.5)
        monkeypatch.setattr(loading, "HfApi", lambda: huggingface_hub.HfApi(
            endpoint=f"http://127.0.0.1:{server.getsockname()[1]}"))
        start = time.perf_counter()
        with pytest.raises(PeftkitError, match="did not answer"):
            load(NOWHERE)
        assert time.perf_counter() - start < 5


def test_no_pickle_and_no_code_is_ever_fetched(monkeypatch, folders):
    asked = []

    def download(name, *, allow_patterns, local_files_only=False):
        asked.append((allow_patterns, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(folders["llava"])

    monkeypatch.setattr(loading, "snapshot_download", download)
    monkeypatch.setattr(loading.HfApi, "model_info", lambda self, name, **kwargs: None)
    assert load(NOWHERE).name == NOWHERE
    assert [local for _, local in asked] == [True, False]
    wanted = [file.name for file in folders["llava"].iterdir()] + [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "merges.txt", "tokenizer.model"]
    refused = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth", "model.ckpt",
               "weights.pkl", "weights.pickle", "tf_model.h5", "flax_model.msgpack", "modeling_qwen.py", "data.npz"]
    for patterns, _ in asked:
        assert patterns == HUB_FILES
        assert sorted(filter_repo_objects(wanted + refused, allow_patterns=patterns)) == sorted(wanted)


def test_a_cached_hub_model_needs_no_network_and_half_a_download_is_not_used(no_network, tmp_path, folders):
    commit = "0" * 40
    repository = tmp_path / "models--peftkit-tests--no-such-model"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", repository / "trees", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in folders["llava"].iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    assert load(NOWHERE).hash == weights_hash(folders["llava"])
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(PeftkitError):
        load(NOWHERE)


# ---- bundled bases ---------------------------------------------------------------------------------------------------

def megabytes(folder) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def test_the_three_bases_are_bundled():
    assert set(EXPECTED) <= set(bundled_names())


def test_each_bundled_base_is_at_most_8_mb_and_all_are_at_most_40():
    sizes = {name: megabytes(BUNDLED / name) for name in bundled_names()}
    assert all(size <= 8 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 40


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bundled_base_loads_and_is_the_one_of_its_manifest(name, no_network):
    base = load(name)
    assert base.name == name and base.architecture in ARCHITECTURES.values()
    facts = manifest(name)
    assert facts["hash"] == base.hash == weights_hash(BUNDLED / name)
    assert {"recipe", "seed", "seconds", "hash", "scores"} <= set(facts)
    assert facts["recipe"]["name"] == name and isinstance(facts["seed"], int) and facts["seconds"] > 0
    assert facts["scores"] and all(0 <= score <= 1 for score in facts["scores"].values())
