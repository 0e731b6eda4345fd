"""Zhou et al. 2024, "An Empirical Study on Parameter-Efficient Fine-Tuning for MultiModal Large Language Models"."""
from .differences import differences
from .fitness import fitness, is_fit, resolution
from .printed import printed_table, unseen_and_seen
from .shares import PAPER_SIZES, llava_7b, paper_shares, share_row
from .study import CONNECTOR_RATE, RATES, SEEN, SIZES, TIERS, UNSEEN, main_records, main_study
from .tables import COUNTERPARTS, MODELS, beside, figure2_data, long, main_table, our_table, paper_table, seed_table

__all__ = ["CONNECTOR_RATE", "COUNTERPARTS", "MODELS", "PAPER_SIZES", "RATES", "SEEN", "SIZES", "TIERS", "UNSEEN",
           "beside", "differences", "figure2_data", "fitness", "is_fit", "llava_7b", "long", "main_records",
           "main_study", "main_table", "our_table", "paper_shares", "paper_table", "printed_table", "seed_table",
           "resolution", "share_row", "unseen_and_seen"]
