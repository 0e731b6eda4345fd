"""Greedy answers to several questions about one picture: what their prompts share passes through the model once.

A pack is one sequence, as in training (`data/packing.py`): the shared tokens, picture included, then each question's
own, which see the shared ones and themselves. Every step of decoding adds one token a question to the pack's cache, so
no cache is repeated for the questions.
"""
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from ..data.encoded import Encoded
from ..data.packing import pack
from ..methods import leading_tokens
from ..training.forward import packed_forward
from ..training.last_block import learned_only
from ..training.merged_lora import merged_lora
from ..training.towers import TOWERS, connect, unwrap

LONGEST = 512  # tokens of a pack, or twice the longest row: in longer ones attention to masked tokens costs too much
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0,
           "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None, "begin_suppress_tokens": None,
           "forced_eos_token_id": None, "exponential_decay_length_penalty": None}  # with these the largest logit wins


@dataclass
class Decoding:
    """P packs of up to Q questions, of each of which one token is read at a time.

    tokens: (P, Q), the next to be read. positions: (P, Q), or (3, P, Q) of a model with three-dimensional ones. seen:
    (P, 1, Q, L), additive, which of the L tokens read so far each question sees. cache: keys and values of these, and
    of virtual tokens in front of them.
    """

    tokens: Tensor
    positions: Tensor
    seen: Tensor
    cache: DynamicCache

    def select(self, packs: Tensor) -> "Decoding":
        """These packs only, by number; the cache is changed in place."""
        self.cache.batch_select_indices(packs)
        return Decoding(self.tokens[packs], self.positions[..., packs, :], self.seen[packs], self.cache)


def why_apart(model: nn.Module, encoded: Encoded, max_new_tokens: int) -> str | None:
    """Why the questions about a picture cannot be answered side by side, or None if they can."""
    base = unwrap(model)
    text = base.config.get_text_config()
    attention, window = text._attn_implementation, getattr(text, "sliding_window", None) or float("inf")
    settings = base.generation_config.to_dict()
    changed = [name for name, value in NEUTRAL.items() if settings.get(name) not in (None, value)]
    reasons = {
        "this model's picture and question see each other both ways": encoded.two_way,
        f"a {base.config.model_type} has no picture in a causal prompt": base.config.model_type not in TOWERS,
        "the rows lack picture_ids": len(encoded.picture_ids) != len(encoded),
        f"attention {attention!r} takes no mask for several questions": attention not in ("eager", "sdpa"),
        f"attention looks back {window} tokens only": max(encoded.lengths()) + max_new_tokens > window,
        f"generation_config sets {', '.join(changed)}": bool(changed),
        "virtual tokens are switched off": _virtual_tokens(model) and getattr(model, "_adapters_disabled", False)}
    return next((reason for reason, holds in reasons.items() if holds), None)


def pack_batches(encoded: Encoded, size: int) -> list[list[list[int]]]:
    """Row numbers of each pack of each batch: packs of similar size together, at most `size` questions in a batch."""
    longest = max(LONGEST, 2 * max(encoded.lengths()))
    parts = [part for group in encoded.by_picture(range(len(encoded))) for part in encoded.split(group, longest)]
    packs = [part[start:start + size] for part in parts for start in range(0, len(part), size)]
    batches: list[list[list[int]]] = []
    for one in sorted(packs, key=lambda rows: (len(rows), sum(len(encoded.prompts[r]) for r in rows))):
        if not batches or (len(batches[-1]) + 1) * len(one) > size:
            batches.append([])
        batches[-1].append(one)
    return batches


@torch.no_grad()
def answer_packs(model: nn.Module, encoded: Encoded, packs: list[list[int]],
                 max_new_tokens: int) -> dict[int, list[int]]:
    """Row -> its new token ids, up to and with the first end token. A pack leaves when all its answers have ended."""
    state = _read_prompts(model, encoded, packs)
    ends = unwrap(model).generation_config.eos_token_id  # an id, several, or None
    ends = torch.tensor([] if ends is None else ends, device=state.tokens.device).flatten()
    new = torch.full((*state.tokens.shape, max_new_tokens), encoded.pad, device=state.tokens.device)
    left = torch.arange(len(packs), device=new.device)  # numbers of the packs in `state`
    ended = torch.zeros_like(state.tokens, dtype=torch.bool)
    for step in range(max_new_tokens):
        if step:
            state = _step(model, state)
        new[left, :, step] = state.tokens
        ended |= torch.isin(state.tokens, ends)
        going = (~ended).any(dim=1).nonzero().squeeze(1)
        if not len(going):
            break
        if 2 * len(going) <= len(left):  # above that, what is saved does not pay for a copy of the cache
            state, left, ended = state.select(going), left[going], ended[going]
    ends = set(ends.tolist())
    return {row: _until(ends, ids) for rows, answers in zip(packs, new.tolist()) for row, ids in zip(rows, answers)}


def _until(ends: set[int], ids: list[int]) -> list[int]:
    return next((ids[:at + 1] for at, token in enumerate(ids) if token in ends), ids)


def _read_prompts(model: nn.Module, encoded: Encoded, packs: list[list[int]]) -> Decoding:
    """The packs pass through the model; logits are computed at the last token of each prompt, nowhere else."""
    base = unwrap(model)
    shared = [encoded.shared(rows) for rows in packs]
    prefixes = [encoded.prompts[rows[0]][:n] for n, rows in zip(shared, packs)]
    segments = [[(encoded.prompts[r][n:], []) for r in rows] for n, rows in zip(shared, packs)]
    packed = pack(prefixes, segments, encoded.pad, encoded.places(prefixes, packs))
    last = _last(shared, segments)  # (P, Q)
    seen = packed.mask.take_along_dim(last[:, None, :, None], dim=2)  # (P, 1, Q, L)
    positions = packed.positions.take_along_dim(last.expand(*packed.positions.shape[:-1], -1), dim=-1)  # ((3,) P, Q)
    inputs = {"input_ids": packed.ids, "position_ids": packed.positions, "attention_mask": packed.mask}
    inputs = {name: value.to(base.device) for name, value in inputs.items()}
    inputs |= _pictures(model, encoded, [rows[0] for rows in packs])
    front = leading_tokens(model)
    index = torch.arange(len(packs))[:, None] * (front + packed.ids.shape[1]) + front + last  # in the flattened batch
    with learned_only(model, index.flatten().to(base.device)), merged_lora(model):
        output = packed_forward(model, inputs | {"past_key_values": DynamicCache(), "use_cache": True})
    tokens = output.logits.argmax(-1).view(last.shape)
    return Decoding(tokens, positions.to(base.device) + 1, seen.to(base.device, base.dtype), output.past_key_values)


def _last(shared: list[int], segments: list[list[tuple[list[int], list[int]]]]) -> Tensor:
    """Column of the last prompt token of each question, (P, Q); a question that a pack lacks is its last one again."""
    ends = [n - 1 + np.cumsum([len(own) for own, _ in parts]) for n, parts in zip(shared, segments)]
    most = max(map(len, ends))
    return torch.from_numpy(np.stack([np.pad(columns, (0, most - len(columns)), "edge") for columns in ends]))


def _pictures(model: nn.Module, encoded: Encoded, rows: list[int]) -> dict:
    """Forward arguments for the rows' pictures, each of which passes through the tower once."""
    if encoded.features is not None:
        return connect(model, encoded.seen(rows)["features"])
    base = unwrap(model)
    first = {encoded.picture_ids[r]: r for r in rows}
    pictures = {name: value.to(base.device) for name, value in encoded.pictures_of(list(first.values())).items()}
    output = base.get_image_features(**pictures)
    tokens = dict(zip(first, output.pooler_output))
    output = replace(output, pooler_output=[tokens[encoded.picture_ids[r]] for r in rows])
    return {"mm_encoder_outputs": {"image": output}}


def _step(model: nn.Module, state: Decoding) -> Decoding:
    """Each question's next token is read, and its best successor put in its place."""
    questions, virtual = state.tokens.shape[1], _virtual_tokens(model)
    itself = torch.full((questions, questions), torch.finfo(state.seen.dtype).min).fill_diagonal_(0).to(state.seen)
    seen = torch.cat([state.seen, itself.expand(len(state.seen), 1, -1, -1)], dim=-1)
    inner = model.base_model if virtual else model  # peft's own forward would put virtual tokens in front once more
    logits = inner(input_ids=state.tokens, position_ids=state.positions + virtual, use_cache=True,
                   attention_mask=F.pad(seen, (virtual, 0)), past_key_values=state.cache).logits  # (P, Q, vocabulary)
    return Decoding(logits.argmax(-1), state.positions + 1, seen, state.cache)


def _virtual_tokens(model: nn.Module) -> int:
    config = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
