"""From rows (picture, question, answers) to tensors: prompts and answers as ids, pictures as the processor makes them.

Everything that could go wrong with a row is found here, before training starts, and named by split and row.
"""
import hashlib
import os
from dataclasses import dataclass, field

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import PeftkitError
from .packing import pack
from .tasks import prompt_text

IGNORE = -100
CHUNK = 64  # rows that the processor gets at a time


@dataclass
class Encoded:
    """A data set in the model's own terms; rows share their number across all fields.

    prompts, answers: token ids (an answer ends with the end token). pictures: what the processor makes of the images,
    name -> (N, ...) tensor. features: (N, tokens, width) output of the frozen vision tower once it is cached.
    references: accepted answers; question_ids: as in the data set. picture_ids: equal for rows about the same picture.
    image_token: the id that stands for pictures in prompts.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    pictures: dict[str, Tensor]
    references: list[list[str]]
    question_ids: list[str]
    pad: int
    features: Tensor | None = None
    picture_ids: list[str] = field(default_factory=list)
    image_token: int | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and answer together."""
        return [len(p) + len(a) for p, a in zip(self.prompts, self.answers)]

    def training_batch(self, rows: list[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels (B, L), padded on the right; and the rows' features or pictures.

        labels[b, t] is the token that position t must predict, IGNORE outside the answer.
        """
        length = max(len(self.prompts[r]) + len(self.answers[r]) for r in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
        for b, r in enumerate(rows):
            prompt, answer = self.prompts[r], self.answers[r]
            end = len(prompt) + len(answer)
            ids[b, :end] = torch.tensor(prompt + answer)
            mask[b, :end] = 1
            labels[b, len(prompt) - 1:end - 1] = torch.tensor(answer)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **self._seen(rows)}

    def packed_batch(self, rows: list[int], longest: int = 4096) -> dict[str, Tensor]:
        """The rows with those about one picture side by side in one sequence, which holds the picture once.

        input_ids, position_ids, labels (P, L) and attention_mask (P, 1, L, L), additive, of P packs; and the packs'
        features or pictures. A pack that would be longer than `longest` tokens is split. Raises PeftkitError for a
        row that is longer by itself.
        """
        packs = [part for group in self._by_picture(rows) for part in self._split(group, longest)]
        prefixes = [self.prompts[part[0]][:self._shared(part)] for part in packs]
        segments = [[(self.prompts[r][len(prefix):], self.answers[r]) for r in part]
                    for prefix, part in zip(prefixes, packs)]
        packed = pack(prefixes, segments, self.pad)
        return {"input_ids": packed.ids, "attention_mask": packed.mask, "position_ids": packed.positions,
                "labels": packed.labels, **self._seen([part[0] for part in packs])}

    def _by_picture(self, rows: list[int]) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for r in rows:
            groups.setdefault(self.picture_ids[r], []).append(r)
        return [part for group in groups.values() for part in ([group] if self._shares(group) else [[r] for r in group])]

    def _shared(self, rows: list[int]) -> int:
        """Tokens that the rows' prompts begin with in common; at least the last one of each is left to itself."""
        if len(rows) == 1:
            return len(self.prompts[rows[0]])
        return min(len(os.path.commonprefix([self.prompts[r] for r in rows])),
                   min(len(self.prompts[r]) for r in rows) - 1)

    def _shares(self, rows: list[int]) -> bool:
        """Whether the whole picture lies in what the rows have in common."""
        rest = self.prompts[rows[0]][self._shared(rows):]
        return self.image_token not in rest

    def _split(self, rows: list[int], longest: int) -> list[list[int]]:
        shared, parts, length = self._shared(rows), [[]], 0
        for r in rows:
            own = len(self.prompts[r]) + len(self.answers[r])
            if own > longest:
                raise PeftkitError(f"row {r} has {own} tokens; accepted: up to {longest} in a pack")
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
        return {"input_ids": ids, "attention_mask": mask, **{k: v[rows] for k, v in self.pictures.items()}}

    def _seen(self, rows: list[int]) -> dict[str, Tensor]:
        if self.features is not None:
            return {"features": self.features[rows]}
        return {name: value[rows] for name, value in self.pictures.items()}


def encode(processor, rows: datasets.Dataset, prompt: str, *, split: str = "train", max_length: int = 2048) -> Encoded:
    """Encode a split for training and evaluation.

    prompt: the task's format string. max_length: tokens of a row; a longer answer is cut at the end.
    Raises PeftkitError, naming split and row, for a missing or damaged picture, an empty answer, or an answer that the
    length limit cuts off entirely.
    """
    tokenizer = processor.tokenizer
    encoded = Encoded([], [], {}, [], [], tokenizer.pad_token_id, image_token=getattr(processor, "image_token_id", None))
    parts: dict[str, list[Tensor]] = {}
    _check_columns(rows, split)
    undecoded = rows.cast_column("image", datasets.Image(decode=False)) if _has_image_feature(rows) else rows
    for start in range(0, len(rows), CHUNK):
        chunk = [_checked(undecoded[i], split, i) for i in range(start, min(start + CHUNK, len(rows)))]
        texts = [chat_prompt(processor, prompt_text(prompt, row)) for row in chunk]
        inputs = processor(images=[[row["image"]] for row in chunk], text=texts, padding=True, return_tensors="pt")
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        for name, value in inputs.items():
            parts.setdefault(name, []).append(_one_a_row(processor, name, value, len(chunk)))
        for offset, row in enumerate(chunk):
            tokens = ids[offset][mask[offset].bool()].tolist()
            answer = tokenizer(row["answers"][0], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            if len(tokens) >= max_length:
                raise PeftkitError(f"{split} row {start + offset}: the prompt has {len(tokens)} tokens, so max_length="
                                   f"{max_length} cuts its answer off entirely; accepted: more than {len(tokens)}")
            encoded.prompts.append(tokens)
            encoded.answers.append(answer[:max_length - len(tokens)])
            encoded.references.append(list(row["answers"]))
            encoded.picture_ids.append(_picture_id(parts, offset))
            encoded.question_ids.append(str(row.get("question_id", start + offset)))
    encoded.pictures = {name: _joined(values) for name, values in parts.items()}
    return encoded


def chat_prompt(processor, text: str) -> str:
    """One picture and a text as the model's own chat format, up to where the answer starts."""
    if not getattr(processor, "chat_template", None):
        return f"{getattr(processor, 'image_token', '<image>')}{text}\n"
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _one_a_row(processor, name: str, value: Tensor, rows: int) -> Tensor:
    """The processor's output, refused unless it is about pictures and holds one entry a row."""
    if not name.startswith("pixel_") or len(value) != rows:
        raise PeftkitError(f"{type(processor).__name__} makes {name!r} of shape {tuple(value.shape)} for {rows} rows; "
                           "accepted: pixel_values and pixel_attention_mask with one entry a row (LLaVA, Idefics2)")
    return value


def _picture_id(parts: dict[str, list[Tensor]], row: int) -> str:
    """A hash of what the processor made of a row's picture."""
    digest = hashlib.sha256()
    for name, values in sorted(parts.items()):
        digest.update(values[-1][row].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _joined(parts: list[Tensor]) -> Tensor:
    """Chunks as one tensor; smaller pictures get zeros at the right and bottom, as processors pad within a chunk."""
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
    missing = [[n for have, want in zip(part.shape[:0:-1], shape[::-1]) for n in (0, want - have)] for part in parts]
    return torch.cat([F.pad(part, pad) if any(pad) else part for part, pad in zip(parts, missing)])


def _has_image_feature(rows: datasets.Dataset) -> bool:
    return isinstance(rows.features["image"], datasets.Image)


def _check_columns(rows: datasets.Dataset, split: str) -> None:
    missing = [name for name in ("image", "answers") if name not in rows.column_names]
    if missing:
        raise PeftkitError(f"{split} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    if len(rows) == 0:
        raise PeftkitError(f"{split} has no rows; accepted: 1 or more")


def _checked(row: dict, split: str, number: int) -> dict:
    """The row with its picture decoded to RGB, or an error that names it."""
    image, answers = row["image"], row["answers"]
    if image is None:
        raise PeftkitError(f"{split} row {number} has no image")
    if not answers or not str(answers[0]).strip():
        raise PeftkitError(f"{split} row {number} has an empty answer")
    if not isinstance(answers, list):
        raise PeftkitError(f"{split} row {number}: its answers are a {type(answers).__name__}; accepted: a list of str")
    if not isinstance(image, (dict, Image.Image)):
        raise PeftkitError(f"{split} row {number}: its image is a {type(image).__name__}; accepted: a picture, such as "
                           "`rows.cast_column('image', datasets.Image())` makes of paths")
    try:
        if isinstance(image, dict):
            image = datasets.Image().decode_example(image)
        return {**row, "image": image.convert("RGB")}
    except (OSError, SyntaxError, ValueError) as error:
        raise PeftkitError(f"{split} row {number}: its image cannot be read ({error})") from None
