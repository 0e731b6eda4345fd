"""The grids: which rows are trained on which targets, and how large.

    huang2024            every row of the comparison; on the other bases those that generality asks for (C2 to C4, C8)
    huang2024-released   the L2 penalty as the authors' code has it (facts, section 4), in the place of none
    huang2024-paths      some rows at smaller rates, tested after every epoch: what is left at equal target score?
    huang2024-layers     one and four blocks tuned in the place of two
"""
from dataclasses import dataclass
from pathlib import Path

from ...errors import choose
from ...studies import RunStore, Study
from ..zhou2024.study import RATES, SIZES

CAPTIONS, QUESTIONS = ("flickr30k", "coco"), ("scienceqa", "iconqa_txt")
TARGETS = CAPTIONS + QUESTIONS
SOURCES = ("okvqa", "textvqa", "gqa", "ocrvqa")
BASE, LARGER, RESAMPLER = "tiny-llava-s", "tiny-llava-m", "tiny-idefics2"  # the last in VILA's place
LAYERS = 2
RATE, CONNECTOR_RATE = 3e-3, 5e-4  # of the tuned blocks in every row but LoRA, DoRA, adapter; of the connector in all
BATCH = 16
MAIN = "huang2024"
RELEASED_STUDY, PATHS_STUDY, LAYERS_STUDY = (f"{MAIN}-{name}" for name in ("released", "paths", "layers"))
COMPARED = (MAIN, RELEASED_STUDY)  # the studies whose rows stand side by side
RUN_ONE = "peftkit.papers.huang2024.run:run_one"

# Row -> method and options. All but the last three train the connector and the last LAYERS blocks; LoRA, DoRA and
# adapter cannot be held to the last blocks: they are in all of them, with the sizes and rates of Zhou 2024's study.
ROWS: dict[str, tuple[str, dict]] = {
    "zero-shot": ("none", {}),
    "full": ("language", {}),
    "full, frozen projector": ("language", {"connector": "frozen"}),
    "L2-SP": ("l2-sp", {"strength": 0.1}),
    "half": ("half", {}),
    "random mask": ("random-mask", {}),
    "magnitude mask": ("magnitude-mask", {}),
    "gradient mask": ("gradient-mask", {}),
    "discrepancy mask": ("spider", {"mask": "binary"}),
    "SPIDER": ("spider", {"mask": "weighted"}),
    "SPIDER, frozen projector": ("spider", {"mask": "weighted", "connector": "frozen"}),
    "LoRA": ("lora", SIZES["lora"]),
    "DoRA": ("dora", SIZES["lora"]),
    "adapter": ("adapter", SIZES["adapter"]),
}
PUT_BACK = "full, projector put back"
AFTERWARDS = ("merge at the end", "DARE", "grafting", "Model Tailor", PUT_BACK)  # made of what `full` has trained
CONTROLS = ("full, frozen projector", "SPIDER, frozen projector", PUT_BACK)  # our arms: no rivals
RELEASED = "L2, as released"
WHOLE = {"lora": RATES["lora"], "dora": RATES["lora"], "adapter": RATES["adapter"]}
GENERAL = ("zero-shot", "full", "SPIDER", "random mask")  # on the other bases
PATHS = {  # row -> its learning rates; the middle one is the geometric mean, the largest that of the main study
    **dict.fromkeys(("full", "SPIDER", "L2-SP", "random mask"), (1e-3, 1.7e-3, RATE)),
    "LoRA": (3e-3, 5.5e-3, WHOLE["lora"]["learning_rate"])}
PATH_TARGETS = ("flickr30k", "iconqa_txt")  # one of each kind
LEVELS = tuple(n / 20 for n in range(10, 21))  # of the way from the untouched base's T to the highest common one
DEPTHS = (1, 4)  # blocks; LAYERS itself is in the main study


@dataclass(frozen=True)
class Tier:
    """How large the studies are run."""

    bases: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    train_size: int
    test_size: int
    epochs: int


TIERS = {
    "smoke": Tier((BASE,), TARGETS[:1], (42,), 32, 16, 1),
    "laptop": Tier((BASE, LARGER, RESAMPLER), TARGETS, (42, 43, 44, 45, 46), 256, 120, 3),
}


def main(tier: Tier, store: RunStore) -> list[Study]:
    """Every row on the first base, some on the others."""
    return [_study(MAIN, base, tier, store, tuple(ROWS) if base == BASE else GENERAL) for base in tier.bases]


def released(tier: Tier, store: RunStore) -> list[Study]:
    """`full` with the released form of the L2 penalty."""
    return [_study(RELEASED_STUDY, BASE, tier, store, ("full",))]


def paths(tier: Tier, store: RunStore) -> list[Study]:
    """Every row of PATHS at its two smaller rates. The runs of the largest are those of the main study."""
    grids = []
    for rates in list(zip(*PATHS.values()))[:-1]:
        chosen = {ROWS[row][0]: {"learning_rate": rate} for row, rate in zip(PATHS, rates)}
        grids.append(_study(PATHS_STUDY, BASE, tier, store, tuple(PATHS), targets=PATH_TARGETS, settings=chosen))
    return grids


def layers(tier: Tier, store: RunStore) -> list[Study]:
    """Full tuning and SPIDER on fewer and on more blocks."""
    return [_study(LAYERS_STUDY, BASE, tier, store, ("full", "SPIDER"), targets=PATH_TARGETS, layers=depth)
            for depth in DEPTHS]


STUDIES = {MAIN: main, RELEASED_STUDY: released, PATHS_STUDY: paths, LAYERS_STUDY: layers}


def studies(name: str, tier: str, store: RunStore | str | Path) -> list[Study]:
    """The grids of a study. Raises PeftkitError for an unknown study or tier."""
    build, scale = STUDIES[choose("study", name, STUDIES)], TIERS[choose("tier", tier, TIERS)]
    return build(scale, store if isinstance(store, RunStore) else RunStore(store))


def row_of(config: dict) -> str:
    """The row that a run's configuration belongs to. Raises PeftkitError for one that no row has."""
    if config["study"] == RELEASED_STUDY:
        return RELEASED
    names = {_key(*row): name for name, row in ROWS.items()}
    return names[choose("configuration of a row", _key(config["method"], config["options"]), names)]


def study_of(row: str) -> str:
    """The study whose runs a row of the comparison has."""
    return RELEASED_STUDY if row == RELEASED else MAIN


def on_a_path(config: dict) -> bool:
    """Whether a run is tested after every epoch: those of huang2024-paths, and those of the main study beside them."""
    beside = config["study"] == MAIN and config["base"] == BASE and config["task"] in PATH_TARGETS
    return config["study"] == PATHS_STUDY or beside and row_of(config) in PATHS


def _key(method: str, options: dict) -> str:
    """What tells rows apart: method, mask and connector."""
    return f"{method}, {options.get('mask', 'no')} mask, connector {options.get('connector', 'tuned')}"


def _study(name: str, base: str, tier: Tier, store: RunStore, rows: tuple[str, ...], *, layers: int = LAYERS,
           targets: tuple[str, ...] | None = None, settings: dict | None = None) -> Study:
    methods: dict[str, list[dict]] = {}
    for row in rows:
        method, options = ROWS[row]
        more = {} if method in WHOLE else {"layers": layers}
        if method == "half":
            more["steps_a_round"] = -(-tier.train_size // BATCH)  # an epoch
        methods.setdefault(method, []).append(options | more)
    shared = {"epochs": tier.epochs, "batch_size": BATCH, "learning_rate": RATE,
              "connector_learning_rate": CONNECTOR_RATE}
    chosen = {method: rate for method, rate in (WHOLE | (settings or {})).items() if method in methods}
    if "none" in methods:
        methods["none"] = {}
    targets = [target for target in targets or tier.targets if target in tier.targets]
    return Study(name, bases=(base,), methods=methods, connectors=("tuned",), tasks=targets, seeds=tier.seeds,
                 store=store, settings={"all": shared} | chosen, train_size=tier.train_size,
                 test_size=tier.test_size, run_one=RUN_ONE)
