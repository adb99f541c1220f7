"""Baselines as HEAR modules: what a score is worth is its distance from them.

`logmel-stats` learns nothing: mean and standard deviation of the log-mel. `untrained` has the architecture alone.
"""

BASELINES = {  # name in --models: HEAR module
    "logmel-stats": "hear_jepa.evaluation.baselines.logmel_stats",
    "untrained": "hear_jepa.evaluation.baselines.untrained",
}
