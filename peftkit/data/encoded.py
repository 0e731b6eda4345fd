"""A data set in the model's own terms, and batches of its rows: for training, packed, for generation."""
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import PeftkitError
from .packing import pack
from .patches import grid_positions, real_patches

IGNORE = -100
NOT_SHARED = ("this model's picture and question see each other both ways, so a picture's states differ from question "
              "to question: rows about one picture are not packed, each is a sequence of its own")


@dataclass
class Encoded:
    """A data set in the model's own terms; rows share their number across all fields.

    prompts, answers: token ids (an answer ends with the end token). pictures: what the processor makes of the images,
    name -> (N, ...) tensor, smaller ones padded with zeros. features: the frozen vision tower's output once it is
    cached, (tokens, width) a row, one and the same for rows about one picture. references: accepted answers;
    question_ids: as in the data set. picture_ids: equal for rows about the same picture. image_token: the id that
    stands for pictures in prompts.
    merge_size: merge_size x merge_size patches become one image token, and positions are three-dimensional (Qwen2-VL).
    two_way: picture and question see each other in both directions (PaliGemma).
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    pictures: dict[str, Tensor]
    references: list[list[str]]
    question_ids: list[str]
    pad: int
    features: Sequence[Tensor] | None = None
    picture_ids: list[str] = field(default_factory=list)
    image_token: int | None = None
    merge_size: int | None = None
    two_way: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and answer together."""
        return [len(p) + len(a) for p, a in zip(self.prompts, self.answers)]

    def training_batch(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels (B, L), padded on the right; and the rows' features or pictures.

        labels[b, t] is the token that position t must predict, IGNORE outside the answer. Qwen2-VL and PaliGemma also
        get the types of their tokens, from which their models derive positions and mask.
        """
        length = max(len(self.prompts[r]) + len(self.answers[r]) for r in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask, answered, labels = torch.zeros_like(ids), torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for b, r in enumerate(rows):
            prompt, answer = self.prompts[r], self.answers[r]
            end = len(prompt) + len(answer)
            ids[b, :end] = torch.tensor(prompt + answer)
            mask[b, :end], answered[b, len(prompt):end] = 1, 1
            labels[b, len(prompt) - 1:end - 1] = torch.tensor(answer)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **self._types(ids, answered),
                **self.seen(rows)}

    def packed_batch(self, rows: list[int], longest: int = 4096) -> dict[str, Tensor]:
        """The rows with those about one picture side by side in one sequence, which holds the picture once.

        input_ids, position_ids, labels (P, L) and attention_mask (P, 1, L, L), additive, of P packs; and the packs'
        features or pictures. Qwen2-VL's position_ids are (3, P, L). A pack that would be longer than `longest` tokens
        is split. Raises PeftkitError for a row that is longer by itself.

        PaliGemma's mask lets every image token see the question (token type 0 sees all of type 0), so no state of the
        picture can be shared between questions: with a warning, the rows come back as `training_batch` has them.
        """
        for r, own in ((r, len(self.prompts[r]) + len(self.answers[r])) for r in rows):
            if own > longest:
                raise PeftkitError(f"row {r} has {own} tokens; accepted: up to {longest} in a pack")
        if self.two_way:
            warnings.warn(NOT_SHARED, stacklevel=2)
            return self.training_batch(rows)
        packs = [part for group in self.by_picture(rows) for part in self.split(group, longest)]
        prefixes = [self.prompts[part[0]][:self.shared(part)] for part in packs]
        segments = [[(self.prompts[r][len(prefix):], self.answers[r]) for r in part]
                    for prefix, part in zip(prefixes, packs)]
        packed = pack(prefixes, segments, self.pad, self.places(prefixes, packs))
        return {"input_ids": packed.ids, "attention_mask": packed.mask, "position_ids": packed.positions,
                "labels": packed.labels, **self.seen([part[0] for part in packs])}

    def by_picture(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows in groups about one picture, which their prompts show before anything that differs."""
        groups: dict[str, list[int]] = {}
        for r in rows:
            groups.setdefault(self.picture_ids[r], []).append(r)
        return [part for group in groups.values()
                for part in ([group] if self._shares(group) else [[r] for r in group])]

    def shared(self, rows: list[int]) -> int:
        """Tokens that the rows' prompts begin with in common; at least the last one of each is left to itself."""
        if len(rows) == 1:
            return len(self.prompts[rows[0]])
        return min(len(os.path.commonprefix([self.prompts[r] for r in rows])),
                   min(len(self.prompts[r]) for r in rows) - 1)

    def _shares(self, rows: list[int]) -> bool:
        """Whether the whole picture lies in what the rows have in common."""
        rest = self.prompts[rows[0]][self.shared(rows):]
        return self.image_token not in rest

    def split(self, rows: list[int], longest: int) -> list[list[int]]:
        """Rows about one picture in packs of at most `longest` tokens, or of one row that is longer."""
        shared, parts, length = self.shared(rows), [[]], 0
        for r in rows:
            own = len(self.prompts[r]) + len(self.answers[r])
            if parts[-1] and length + own - shared > longest:
                parts.append([])
            length = length + own - shared if parts[-1] else own
            parts[-1].append(r)
        return parts

    def prompt_batch(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, L) of the prompts, padded on the left for generation; and the pictures."""
        length = max(len(self.prompts[r]) for r in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for b, r in enumerate(rows):
            ids[b, length - len(self.prompts[r]):] = torch.tensor(self.prompts[r])
            mask[b, length - len(self.prompts[r]):] = 1
        return {"input_ids": ids, "attention_mask": mask, **self._types(ids, torch.zeros_like(ids)),
                **self.pictures_of(rows)}

    def _types(self, ids: Tensor, answered: Tensor) -> dict[str, Tensor]:
        """What stands where, for models that ask: 1 for tokens of pictures (Qwen2-VL) or of answers (PaliGemma)."""
        if self.merge_size:
            return {"mm_token_type_ids": (ids == self.image_token).long()}
        return {"token_type_ids": answered} if self.two_way else {}

    def places(self, prefixes: list[list[int]], packs: list[list[int]]) -> list[np.ndarray] | None:
        """Three-dimensional positions of the packs' prefixes, for the model that has them."""
        if not self.merge_size:
            return None
        return [grid_positions(prefix, self.image_token, self.pictures["image_grid_thw"][part[0]], self.merge_size)
                for prefix, part in zip(prefixes, packs)]

    def seen(self, rows: list[int]) -> dict[str, Tensor]:
        """What a batch of the rows carries about their pictures: cached features if there are any, else the pictures."""
        if self.features is None:
            return self.pictures_of(rows)
        grids = {name: value[rows] for name, value in self.pictures.items() if name == "image_grid_thw"}
        return {"features": torch.stack([self.features[r] for r in rows]), **grids}

    def pictures_of(self, rows: list[int]) -> dict[str, Tensor]:
        """The rows' pictures as the model takes them."""
        pictures = {name: value[rows] for name, value in self.pictures.items()}
        if self.merge_size:
            patches = pictures["pixel_values"]
            pictures["pixel_values"] = patches[real_patches(patches, pictures["image_grid_thw"])]
        return pictures
