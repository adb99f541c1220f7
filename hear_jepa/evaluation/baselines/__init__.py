"""Baselines as HEAR modules: what a score is worth is its distance from them.

`logmel-stats` learns nothing: mean and standard deviation of the log-mel. `untrained` has the architecture alone.
"""

BASELINES = {  # name in --models: HEAR module
    "untrained": "hear_jepa.evaluation.baselines.untrained",
    "logmel-stats": "hear_jepa.evaluation.baselines.logmel_stats",
}
DEFAULT_MODELS = ("hear_jepa", "untrained", "logmel-stats", "logmel-stats,front_end=paper")
