"""The four stages of pre-training, as the real models have them: tower, language, alignment, instructions."""
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..data.packing import Pack, pack
from ..data.scenes import EMPTY, NUMBER, SHAPE, WORD, degrade, sample_scenes
from ..data.vocabulary import COLORS, DIGITS, PLACES, SHAPES, WORDS
from ..models.regions import architecture
from ..training.towers import image_tokens
from .loss import packed_loss
from .mix import caption_segments, scene_in_words, seen_segments, segments_of, text_segments
from .recipes import Recipe, Stage

NAMES_IN_A_CELL = 1 + len(SHAPES) + len(WORDS) + len(DIGITS)
TEXT_SHARE = 6  # in the last stage every sixth step is text only, so that facts are not forgotten


class Pretraining:
    """State that the stages share: the model, its processor, the random generator, and the log of losses."""

    def __init__(self, recipe: Recipe, model: nn.Module, processor, progress: bool = True):
        self.recipe, self.model, self.processor, self.progress = recipe, model, processor, progress
        self.rng = np.random.default_rng(recipe.seed)
        self.log: dict[str, dict] = {}
        images = processor.image_processor
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (images.image_mean, images.image_std))
        self.tokens = processor.tokenizer.get_vocab()

    def run(self) -> None:
        """All four stages in order."""
        self.vision_stage()
        self.language_stage()
        self.alignment_stage()
        self.instruction_stage()

    # ---- stages -----------------------------------------------------------------------------------------------------

    def vision_stage(self) -> None:
        """Dense labels: from each patch, what is there and of which color. The heads are thrown away afterwards.

        A resampler cannot tell its inputs' order, so the tower in front of one also learns to say where each patch is.
        """
        width, stage = self.recipe.vision_width, self.recipe.vision
        sizes = [NAMES_IN_A_CELL, 1 + len(COLORS)] + [len(PLACES)] * (self.recipe.kind == "idefics2")
        heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])
        tower = self.model.get_submodule(architecture(self.model).vision)

        def losses() -> Iterator[Tensor]:
            while True:
                scenes = sample_scenes(self.rng, stage.scenes, "train", "mixed" if self.rng.random() < 0.8 else "icons")
                pictures = scenes.draw()
                name, color = _cell_labels(scenes)
                if self.rng.random() < 0.2:
                    pictures, cut = degrade(self.rng, pictures)
                    gone = np.repeat(np.arange(3)[None] == cut[:, None], 3, axis=1)  # (N, 9)
                    name, color = np.where(gone, 0, name), np.where(gone, 0, color)
                place = np.tile(np.arange(len(PLACES)), (len(scenes), 1))  # (N, 9)
                total = 0.0
                for features in self.tower_features(pictures, every_layer=True):
                    for head, target in zip(heads, (name, color, place)):
                        truth = torch.from_numpy(target).flatten()  # (N * 9,)
                        total = total + F.cross_entropy(head(features).flatten(0, 1), truth)
                yield total

        self._optimize("vision", stage, losses(), [*tower.parameters(), *heads.parameters()])
        if self.recipe.kind == "llava":
            _normalize_tower(tower, self.tower_features(sample_scenes(self.rng, 512, "train").draw()).std().item())

    def language_stage(self) -> None:
        """Scenes in words, questions about them, facts and plain sentences; no picture."""
        stage = self.recipe.language
        self._optimize("language", stage, self._text_losses(stage), self._language_parameters())

    def alignment_stage(self) -> None:
        """Captions of pictures; only the connector learns."""
        stage = self.recipe.alignment
        if self.recipe.kind == "idefics2":  # the class starts all latents at one, and equal latents stay equal for long
            nn.init.normal_(self._connector().perceiver_resampler.latents.data,
                            generator=torch.Generator().manual_seed(self.recipe.seed))
        losses = self._picture_losses(stage, caption_segments)
        self._optimize("alignment", stage, losses, self._connector().parameters())

    def instruction_stage(self) -> None:
        """Seen tasks and captions of pictures, with some text; connector and language model learn."""
        stage = self.recipe.instruction
        pictures, text = self._picture_losses(stage, seen_segments), self._text_losses(stage)

        def losses() -> Iterator[Tensor]:
            while True:
                for step in range(TEXT_SHARE):
                    yield next(text if step == 0 else pictures)

        self._optimize("instruction", stage, losses(), [*self._connector().parameters(), *self._language_parameters()])

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _connector(self) -> nn.Module:
        return self.model.get_submodule(architecture(self.model).connector)

    def _language_parameters(self) -> list[nn.Parameter]:
        language = self.model.get_submodule(architecture(self.model).language)
        return [*language.parameters(), *self.model.lm_head.parameters()]

    def tower_features(self, pictures: np.ndarray, every_layer: bool = False):
        """Patch features (N, 9, width) of uint8 pictures (N, 48, 48, 3), as the model reads them.

        every_layer: both the layer that LLaVA reads and the last one, as a list (for the dense-label heads).
        """
        pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        if self.recipe.kind == "llava":
            layers = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2:]
            features = [layer[:, 1:] for layer in layers]  # without the class token
        else:
            everything = torch.ones(len(pixels), 3, 3, dtype=torch.bool)
            features = [self.model.model.vision_model(pixels, patch_attention_mask=everything).last_hidden_state]
        return features if every_layer else features[0]

    def _image_tokens(self, pictures: np.ndarray) -> Tensor:
        with torch.no_grad():
            features = self.tower_features(pictures)
        return image_tokens(self.model, features)

    def _ids(self, text: str) -> list[int]:
        return [self.tokens[word] for word in text.split()]

    def _pack(self, prefixes: list[str], segments) -> Pack:
        end = [self.tokens["</s>"]]
        ids = [[(self._ids(s.prompt), self._ids(s.answer) + end) for s in row] for row in segments]
        return pack([self._ids(prefix) for prefix in prefixes], ids, self.tokens["<pad>"])

    def _picture_losses(self, stage: Stage, diet: Callable) -> Iterator[Tensor]:
        image = " ".join(["<image>"] * 9)
        fence = "" if self.recipe.kind == "llava" else "<fake_token_around_image>"
        prefix = f"<s> user {fence} {image} {fence}"
        while True:
            scenes = sample_scenes(self.rng, stage.scenes, "train")
            batch = self._pack([prefix] * len(scenes), segments_of(scenes, diet, self.rng))
            yield packed_loss(self.model, batch, self._image_tokens(scenes.draw()))

    def _text_losses(self, stage: Stage) -> Iterator[Tensor]:
        while True:
            scenes = sample_scenes(self.rng, stage.scenes, "train")
            prefixes = [f"<s> user {scene_in_words(scenes.things(i))}" for i in range(len(scenes))]
            yield packed_loss(self.model, self._pack(prefixes, segments_of(scenes, text_segments, self.rng)))

    def _optimize(self, name: str, stage: Stage, losses: Iterator[Tensor], parameters) -> None:
        parameters = list(parameters)
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = get_cosine_schedule_with_warmup(optimizer, min(200, stage.steps // 10), stage.steps)
        history, start = [], time.perf_counter()
        bar = tqdm(range(stage.steps), desc=f"{self.recipe.name}: {name}", disable=not self.progress, mininterval=5)
        for _ in bar:
            loss = next(losses)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            history.append(loss.item())
            if len(history) % 50 == 0:
                bar.set_postfix(loss=f"{np.mean(history[-50:]):.3f}")
        self.log[name] = {"steps": stage.steps, "seconds": round(time.perf_counter() - start, 1),
                          "final_loss": round(float(np.mean(history[-100:])), 4)}


def _cell_labels(scenes) -> tuple[np.ndarray, np.ndarray]:
    """What a cell shows, (N, 9) in 0..28 with 0 for nothing, and its color, (N, 9) in 0..6 with 0 for none."""
    first = np.array([0, 1, 1 + len(SHAPES), 1 + len(SHAPES) + len(WORDS)])
    assert (EMPTY, SHAPE, WORD, NUMBER) == (0, 1, 2, 3)
    return first[scenes.kind] + scenes.label, np.where(scenes.kind == EMPTY, 0, scenes.color + 1)


@torch.no_grad()
def _normalize_tower(tower: nn.Module, std: float) -> None:
    """Divide CLIP's residual stream by `std`, so that LLaVA's connector starts from features of unit variance.

    Exact up to the epsilon of the layer norms: everything that writes to the stream is divided, and every reader
    normalizes first.
    """
    writers = [tower.pre_layrnorm]
    for layer in tower.encoder.layers:
        writers += [layer.self_attn.out_proj, layer.mlp.fc2]
    for writer in writers:
        writer.weight.div_(std)
        writer.bias.div_(std)
