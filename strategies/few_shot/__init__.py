"""Few-shot learning on episodes, as pure functions on parameters: steps of training, heads, and scores.

`maml` (MAML and its first-order form), `reptile`, `protonet` (prototypes, ridge regression) and `niw`
(NIW-Meta around a body with such a head) each take the parameters, a few trials and the optimiser's state,
and give the next ones. `evaluate` judges predictions on trials of new classes.
"""

from .evaluate import Scores, evaluate, expected_calibration_error
from .maml import GradientSteps, maml_gradient, maml_step
from .niw import LangevinMoments, niw_adapt, niw_predict, niw_step
from .protonet import episode_logits, protonet_step, prototype_logits, prototypes, ridge_logits
from .reptile import reptile_step
from .trial import Trial

__all__ = [
    "GradientSteps",
    "LangevinMoments",
    "Scores",
    "Trial",
    "episode_logits",
    "evaluate",
    "expected_calibration_error",
    "maml_gradient",
    "maml_step",
    "niw_adapt",
    "niw_predict",
    "niw_step",
    "protonet_step",
    "prototype_logits",
    "prototypes",
    "reptile_step",
    "ridge_logits",
]
