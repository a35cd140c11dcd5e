"""Human judgements: where they are kept, how far annotators agree, and simulated annotators. No torch in here."""

from heed.feedback.agreement import krippendorff_alpha, noise_ceiling, nominal_alpha, pairwise_agreement
from heed.feedback.simulated import Judged, SimulatedAnnotator, judge
from heed.feedback.store import FeedbackStore

__all__ = [
    "FeedbackStore",
    "Judged",
    "SimulatedAnnotator",
    "judge",
    "krippendorff_alpha",
    "noise_ceiling",
    "nominal_alpha",
    "pairwise_agreement",
]
