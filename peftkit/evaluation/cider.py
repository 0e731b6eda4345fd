"""CIDEr-D on plain tokens: how much a caption shares with an image's reference captions.

For n = 1..4 a caption c becomes a vector over n-grams g with the weights

    w_c(g) = count_c(g) · (log N − log max(1, df(g))),

where N is the number of images being scored and df(g) the number of those images with g in any of their references.
The score is 10 times the mean, over n and over the references r of the image, of this similarity to the prediction p:

    sim_n(p, r) = Σ_g min(w_p(g), w_r(g)) · w_r(g) / (|w_p| |w_r|) · exp(−(b_p − b_r)² / (2 · 6²)),

b being the number of bigrams (Vedantam et al. 2015, arXiv 1411.5726, section 6). Two consequences:

- N and df come from the references that are passed in, so the score needs the whole test set in one call: a mean over
  batches is another number, one image alone scores 0, and an image listed twice shifts the others.
- Published CIDEr numbers use the Stanford PTB tokenizer and this module does not (it needs Java). The formula is the
  same, the tokens are not: never compare these scores with published ones.
"""
import re
from collections import Counter
from itertools import chain

import numpy as np

from peftkit.errors import PeftkitError

MAX_ORDER = 4
SIGMA = 6.0

NGram = tuple[str, ...]


def cider_d(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """CIDEr-D of every image, shape (N,), each from 0 to 10.

    `predictions` holds one caption per image (N strings), `references` the accepted captions of the same images in the
    same order (N lists, of any lengths ≥ 1). Pass the whole test set, each image once. An empty caption scores 0.
    Raises `PeftkitError` for lengths that differ, no images, or an image without references.
    """
    check_pairs(predictions, references)
    predicted = [ngram_counts(caption) for caption in predictions]
    accepted = [[ngram_counts(caption) for caption in captions] for captions in references]
    idf = inverse_document_frequency(accepted)
    unseen = np.log(len(predictions))

    def weigh(counts: list[Counter]) -> list[dict[NGram, float]]:
        return [{gram: count * idf.get(gram, unseen) for gram, count in order.items()} for order in counts]

    scores = [np.mean([similarity(weigh(caption), weigh(other), caption[1].total() - other[1].total())
                       for other in others])
              for caption, others in zip(predicted, accepted)]
    return np.clip(10.0 * np.array(scores), 0.0, 10.0)


def tokenize(caption: str) -> list[str]:
    """Lower-case words and numbers; punctuation separates, apostrophes inside a word stay: "It's 3-D." → it's, 3, d."""
    return re.findall(r"\w+(?:'\w+)*", caption.lower())


def ngram_counts(caption: str) -> list[Counter]:
    """How often each n-gram occurs, one `Counter` for every n = 1..4."""
    tokens = tokenize(caption)
    return [Counter(zip(*(tokens[start:] for start in range(n)))) for n in range(1, MAX_ORDER + 1)]


def inverse_document_frequency(accepted: list[list[list[Counter]]]) -> dict[NGram, float]:
    """log N − log df for every n-gram of the references; `accepted` is indexed by image, reference, order."""
    images_with = Counter()
    for captions in accepted:
        images_with.update(set(chain.from_iterable(order for counts in captions for order in counts)))
    return {gram: np.log(len(accepted) / frequency) for gram, frequency in images_with.items()}


def similarity(prediction: list[dict[NGram, float]], reference: list[dict[NGram, float]], extra_bigrams: int) -> float:
    """Mean over n of the clipped cosine, times the length penalty: 0 (nothing shared) to 1 (the same caption)."""
    cosines = [_clipped_cosine(*pair) for pair in zip(prediction, reference)]
    return float(np.mean(cosines) * np.exp(-extra_bigrams ** 2 / (2 * SIGMA ** 2)))


def _clipped_cosine(prediction: dict[NGram, float], reference: dict[NGram, float]) -> float:
    overlap = sum(min(weight, reference[gram]) * reference[gram]
                  for gram, weight in prediction.items() if gram in reference)
    norms = np.sqrt(sum(w * w for w in prediction.values()) * sum(w * w for w in reference.values()))
    return overlap / norms if norms > 0 else 0.0


def check_pairs(predictions: list[str], references: list[list[str]]) -> None:
    """Raise `PeftkitError` unless there is one non-empty list of reference strings for each prediction string."""
    if len(predictions) == 0:
        raise PeftkitError("no predictions: there is nothing to score")
    if len(predictions) != len(references):
        raise PeftkitError(f"{len(predictions)} predictions but {len(references)} lists of references")
    for index, (prediction, accepted) in enumerate(zip(predictions, references)):
        if not isinstance(prediction, str):
            raise PeftkitError(f"prediction {index} is {prediction!r}; accepted: a string")
        if isinstance(accepted, str) or len(accepted) == 0 or not all(isinstance(item, str) for item in accepted):
            raise PeftkitError(f"references {index} are {accepted!r}; accepted: a non-empty list of strings")
