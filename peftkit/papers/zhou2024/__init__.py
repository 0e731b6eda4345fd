"""Zhou et al. 2024, "An Empirical Study on Parameter-Efficient Fine-Tuning for MultiModal Large Language Models"."""
from .differences import differences
from .fitness import fitness, is_fit
from .printed import printed_table, unseen_and_seen
from .shares import PAPER_SIZES, llava_7b, paper_shares, share_row
from .study import SEEN, SIZES, TIERS, UNSEEN, main_records, main_study
from .tables import COUNTERPARTS, MODELS, figure2_data, long, our_table, paper_table, seed_table

__all__ = ["COUNTERPARTS", "MODELS", "PAPER_SIZES", "SEEN", "SIZES", "TIERS", "UNSEEN", "differences", "figure2_data",
           "fitness", "is_fit", "llava_7b", "long", "main_records", "main_study", "our_table", "paper_shares",
           "paper_table", "printed_table", "seed_table", "share_row", "unseen_and_seen"]
