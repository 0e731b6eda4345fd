"""The paper's other experiments: each varies one thing of the main study, most of them on one base.

A run in which nothing differs from the main study is a run of the main study and is not done again:
`peftkit.papers.zhou2024.cells` puts it in its place.

    zhou2024-location     places of LoRA, IA3 and adapter (Tables 2 and 13)
    zhou2024-data         training examples, 1 : 5 : 10 as in the paper (Table 3)
    zhou2024-size         rank, bottleneck, virtual tokens (Table 6)
    zhou2024-rates        the paper's four learning rates times 50, for every method (Table 14)
    zhou2024-vision       the vision tower trained as well (Table 12)
    zhou2024-vocabulary   embedding and head in the connector's place, as in the released Qwen code (facts 6.2)
    zhou2024-transfer     12 epochs on one task, looked at after each (Tables 4 and 7)
    zhou2024-hallucination  what tuning on a task does to truth (Table 5)
"""
from ...errors import choose
from ...studies import RunStore, Study
from .study import CONNECTOR_RATE, RATES, SEEN, SIZES, TIERS, UNSEEN, Tier

BASE, RESAMPLER = "tiny-llava-s", "tiny-idefics2"
VQA = tuple(task for task in UNSEEN + SEEN if task != "flickr30k")  # Tables 2 and 13 leave captions out
STABILITY = ("okvqa", "scienceqa")  # Tables 6 and 14
VISION = ("scienceqa", "vizwiz", "okvqa", "ocrvqa")  # Table 12
SOURCES = ("scienceqa", "iconqa_txt", "vizwiz")  # Table 4
TUNED_ON = ("iconqa_txt", "flickr30k")  # Table 5
PLACES = {"lora": ("attention", "mlp"), "ia3": ("attention", "mlp"), "adapter": ("attention", "both")}  # and the usual
DATA_SHARES = (10, 2)  # the largest training set is the main study's
GROWN = {"lora": [{"rank": rank} for rank in (1, 2, 8)], "adapter": [{"bottleneck": size} for size in (1, 2, 4)],
         "prefix-peft": [{"tokens": tokens} for tokens in (10, 30, 40)]}  # and those of SIZES
PAPER_RATES = {"lora": 1e-2, "adapter": 2.5e-3, "ia3": 1e-2, "prefix-peft": 5e-4}  # times 50, see below
GRID = (1e-2, 2.5e-3, 5e-4, 2.5e-4)  # the rates of Table 14 times 50, the ratio of LoRA's best rate here to the paper's
LONG = 12  # epochs
WATCHED = "peftkit.papers.zhou2024.watched:run_one"
VOCABULARY_SEEDS = 3


def location(tier: Tier, store: RunStore) -> list[Study]:
    """LoRA and IA3 in the attention or the MLP alone, the adapter in the attention or in both."""
    methods = {method: [SIZES[method] | {"placement": place} for place in places] for method, places in PLACES.items()}
    return [_study("location", base, tier, store, methods, VQA) for base in (BASE, RESAMPLER) if base in tier.seeds]


def data(tier: Tier, store: RunStore) -> list[Study]:
    """A tenth and half of the training examples."""
    return [_study("data", BASE, tier, store, SIZES, UNSEEN + SEEN, train_size=max(1, tier.train_size // share))
            for share in DATA_SHARES]


def size(tier: Tier, store: RunStore) -> list[Study]:
    """Three other sizes of each method that has one; more seeds than in the main study, also for its own size."""
    return [_study("size", BASE, tier, store, GROWN, STABILITY, seeds=_stability_seeds(tier)),
            *_with_more_seeds("size", tier, store, GROWN)]


def rates(tier: Tier, store: RunStore) -> list[Study]:
    """Every method at every rate of the grid, and with more seeds at its own."""
    studies = []
    for rate in GRID:
        methods = {method: options for method, options in SIZES.items() if RATES[method]["learning_rate"] != rate}
        studies.append(_study("rates", BASE, tier, store, methods, STABILITY, seeds=_stability_seeds(tier),
                              settings={method: {"learning_rate": rate} for method in methods}))
    return [*studies, *_with_more_seeds("rates", tier, store, SIZES)]


def vision(tier: Tier, store: RunStore) -> list[Study]:
    """The vision tower trained beside method and connector, at the connector's rate."""
    methods = {method: options | {"vision": "tuned"} for method, options in SIZES.items()}
    return [_study("vision", BASE, tier, store, methods, VISION)]


def vocabulary(tier: Tier, store: RunStore) -> list[Study]:
    """Embedding and head trained, connector frozen: at the method's rate as in the released code, and at the
    connector's as in the paper."""
    methods = {method: options | {"connector": "frozen", "vocabulary": "tuned"} for method, options in SIZES.items()}
    seeds = tier.seeds.get(RESAMPLER, ())[:VOCABULARY_SEEDS]
    released = {method: {"connector_learning_rate": rate["learning_rate"]} for method, rate in RATES.items()}
    return [_study("vocabulary", RESAMPLER, tier, store, methods, UNSEEN + SEEN, seeds=seeds, settings=settings)
            for settings in ({}, released) if seeds]


def transfer(tier: Tier, store: RunStore) -> list[Study]:
    """Four times as many epochs on one of three tasks; other tasks and hallucination are looked at on the way."""
    return [_study("transfer", BASE, tier, store, SIZES, SOURCES, settings={"all": {"epochs": 4 * tier.epochs}},
                   run_one=WATCHED)]


def hallucination(tier: Tier, store: RunStore) -> list[Study]:
    """Runs of the main study, whose models are then asked what is in pictures; so is the untouched base."""
    return [_study("hallucination", BASE, tier, store, {"none": {}, **SIZES}, TUNED_ON, run_one=WATCHED)]


VARIED = {f"zhou2024-{build.__name__}": build
          for build in (location, data, size, rates, vision, vocabulary, transfer, hallucination)}


def varied_studies(name: str, tier: str, store: RunStore | str) -> list[Study]:
    """The grids of one of the experiments `VARIED`. Raises PeftkitError for an unknown name or tier."""
    build, scale = VARIED[choose("study", name, VARIED)], TIERS[choose("tier", tier, TIERS)]
    return build(scale, store if isinstance(store, RunStore) else RunStore(store))


def _study(name: str, base: str, tier: Tier, store: RunStore, methods: dict, tasks: tuple[str, ...], *,
           seeds: tuple[int, ...] | None = None, settings: dict | None = None, train_size: int | None = None,
           **more) -> Study:
    """A grid with the main study's settings, connector tuned, where nothing else is said."""
    settings = settings or {}
    chosen = {"all": {"epochs": tier.epochs, "connector_learning_rate": CONNECTOR_RATE} | settings.get("all", {})}
    chosen |= {method: RATES[method] | settings.get(method, {}) for method in methods if method in RATES}
    tasks = tasks if tier.every_task else tasks[:1]
    return Study(f"zhou2024-{name}", bases=(base,), methods=methods, connectors=("tuned",), tasks=tasks,
                 seeds=tier.seeds[base] if seeds is None else seeds, store=store, settings=chosen,
                 train_size=train_size or tier.train_size, test_size=tier.test_size, **more)


def _with_more_seeds(name: str, tier: Tier, store: RunStore, methods: dict) -> list[Study]:
    """The main study's own setting with the seeds that only studies of stability have."""
    own = {method: SIZES[method] for method in methods}
    return [_study(name, BASE, tier, store, own, STABILITY, seeds=tier.more_seeds)] if tier.more_seeds else []


def _stability_seeds(tier: Tier) -> tuple[int, ...]:
    return tier.seeds[BASE] + tier.more_seeds
