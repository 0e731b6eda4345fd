"""Statistics for methods × seeds × tasks: what a few seeds can say, and what they cannot.

The unit of uncertainty is the seed. Scores of one method have shape (seeds, tasks), as in rliable; tasks are averaged
inside each seed, then a Student-t interval is put on these per-seed averages. At 3 to 10 seeds it covers what it
promises, which bootstrap intervals of seeds do not (a nominal 95 % one covers about 75 % at three seeds). Every
function refuses fewer than two seeds, because one number says nothing about its own spread.

Test examples are another matter: `example_interval` says how far a score depends on the questions that were drawn, with
the trained models as they are. It has its own type, so that no test between methods can be run on it by mistake.
"""
from .comparison import Comparison, compare
from .equivalence import Equivalence, equivalence
from .examples import ExampleInterval, example_interval
from .holm import holm
from .improvement import Improvement, probability_of_improvement
from .interval import Interval, mean_interval, p_value, paired_difference
from .iqm import iqm
from .planning import seeds_to_resolve
from .sign_flip import SignFlip, sign_flip

__all__ = ["Comparison", "Equivalence", "ExampleInterval", "Improvement", "Interval", "SignFlip", "compare",
           "equivalence", "example_interval", "holm", "iqm", "mean_interval", "p_value", "paired_difference",
           "probability_of_improvement", "seeds_to_resolve", "sign_flip"]
