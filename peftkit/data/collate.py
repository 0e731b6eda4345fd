"""From rows (picture, question, answers) to tensors: prompts and answers as ids, pictures as the processor makes them.

Everything that could go wrong with a row is found here, before training starts, and named by split and row.
"""
import hashlib
from collections.abc import Sequence

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PaliGemmaProcessor

from ..errors import PeftkitError
from .encoded import Encoded
from .tasks import prompt_text

CHUNK = 64  # rows that the processor gets at a time
OF_TOKENS = ("token_type_ids", "mm_token_type_ids", "labels")  # what processors say of tokens: batches make their own


def encode(processor, rows: datasets.Dataset, prompt: str, *, split: str = "train", max_length: int = 2048) -> Encoded:
    """Encode a split for training and evaluation.

    processor: LLaVA's, Idefics2's, Qwen2-VL's or PaliGemma's. prompt: the task's format string.
    max_length: tokens of a row; a longer answer is cut at the end.
    Raises PeftkitError, naming split and row, for a missing or damaged picture, an empty answer, or an answer that the
    length limit cuts off entirely.
    """
    tokenizer = processor.tokenizer
    encoded = Encoded([], [], {}, [], [], tokenizer.pad_token_id,
                      image_token=getattr(processor, "image_token_id", None),
                      merge_size=getattr(getattr(processor, "image_processor", None), "merge_size", None),
                      two_way=isinstance(processor, PaliGemmaProcessor))
    pictures: dict[str, list[Tensor]] = {}  # one entry a row
    _check_columns(rows, split)
    undecoded = rows.cast_column("image", datasets.Image(decode=False)) if _has_image_feature(rows) else rows
    for start in range(0, len(rows), CHUNK):
        chunk = [_checked(undecoded[i], split, i) for i in range(start, min(start + CHUNK, len(rows)))]
        texts = [chat_prompt(processor, prompt_text(prompt, row)) for row in chunk]
        inputs = processor(images=[[row["image"]] for row in chunk], text=texts, padding=True, return_tensors="pt")
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        for name in (name for name in inputs if name not in OF_TOKENS):
            pictures.setdefault(name, []).extend(_one_a_row(processor, name, inputs, len(chunk)))
        for offset, row in enumerate(chunk):
            tokens = ids[offset][mask[offset].bool()].tolist()
            answer = tokenizer(row["answers"][0], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            if len(tokens) >= max_length:
                raise PeftkitError(f"{split} row {start + offset}: the prompt has {len(tokens)} tokens, so max_length="
                                   f"{max_length} cuts its answer off entirely; accepted: more than {len(tokens)}")
            encoded.prompts.append(tokens)
            encoded.answers.append(answer[:max_length - len(tokens)])
            encoded.references.append(list(row["answers"]))
            encoded.picture_ids.append(_picture_id(pictures, start + offset))
            encoded.question_ids.append(str(row.get("question_id", start + offset)))
    encoded.pictures = {name: _joined(values) for name, values in pictures.items()}
    return encoded


def chat_prompt(processor, text: str) -> str:
    """One picture and a text as the model's own chat format, up to where the answer starts."""
    if isinstance(processor, PaliGemmaProcessor):
        return f"{processor.image_token}{text}"  # which adds the begin token and the end of the line itself
    if not getattr(processor, "chat_template", None):
        return f"{getattr(processor, 'image_token', '<image>')}{text}\n"
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _one_a_row(processor, name: str, inputs, rows: int) -> Sequence[Tensor]:
    """The processor's output row by row, refused unless it is about pictures and holds one entry a row."""
    value = inputs[name]
    if name == "pixel_values" and "image_grid_thw" in inputs:  # Qwen2-VL's: the patches of all pictures in one list
        value = value.split(inputs["image_grid_thw"].prod(-1).tolist())
    if not name.startswith(("pixel_", "image_grid_")) or len(value) != rows:
        raise PeftkitError(f"{type(processor).__name__} makes {name!r} of shape {tuple(inputs[name].shape)} for {rows} "
                           "rows; accepted: pixel_values, pixel_attention_mask and image_grid_thw about one picture a "
                           "row (LLaVA, Idefics2, Qwen2-VL, PaliGemma)")
    return value


def _picture_id(pictures: dict[str, list[Tensor]], row: int) -> str:
    """A hash of what the processor made of a row's picture."""
    digest = hashlib.sha256()
    for name, values in sorted(pictures.items()):
        digest.update(values[row].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _joined(rows: list[Tensor]) -> Tensor:
    """Rows as one tensor; smaller pictures get zeros at the right and bottom, as processors pad within a chunk."""
    shape = [max(sizes) for sizes in zip(*(row.shape for row in rows))]
    missing = [[n for have, want in zip(row.shape[::-1], shape[::-1]) for n in (0, want - have)] for row in rows]
    return torch.stack([F.pad(row, pad) if any(pad) else row for row, pad in zip(rows, missing)])


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
