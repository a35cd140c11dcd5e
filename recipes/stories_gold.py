"""The true preference of `stories.yaml`: how positive a continuation is, by the VADER lexicon (pip install 'heed-rlhf[stories]')."""

from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyser() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompt: str, response: str) -> dict[str, float]:
    """VADER's compound sentiment of the continuation, from -1 to 1 (Hutto and Gilbert 2014)."""
    compound = _analyser().polarity_scores(response)["compound"]
    return {"utility": compound, "positive": float(compound > 0.05), "negative": float(compound < -0.05)}
