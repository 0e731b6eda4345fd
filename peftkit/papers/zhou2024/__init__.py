"""Zhou et al. 2024, "An Empirical Study on Parameter-Efficient Fine-Tuning for MultiModal Large Language Models"."""
from .fitness import fitness, is_fit, resolution
from .printed import printed_table, unseen_and_seen
from .records import STUDIES, every_run, looks, main_records, studies, study_records, tidy
from .shares import PAPER_SIZES, llava_7b, paper_shares, share_row
from .study import CONNECTOR_RATE, FULL, RATES, SEEN, SIZES, TIERS, UNSEEN, main_study
from .tables import COUNTERPARTS, MODELS, beside, figure2_data, long, main_table, our_table, paper_table, seed_table

__all__ = ["CONNECTOR_RATE", "COUNTERPARTS", "FULL", "MODELS", "PAPER_SIZES", "RATES", "SEEN", "SIZES", "STUDIES",
           "TIERS", "UNSEEN", "beside", "every_run", "figure2_data", "fitness", "is_fit", "llava_7b", "long", "looks",
           "main_records", "main_study", "main_table", "our_table", "paper_shares", "paper_table", "printed_table",
           "resolution", "seed_table", "share_row", "studies", "study_records", "tidy", "unseen_and_seen"]
