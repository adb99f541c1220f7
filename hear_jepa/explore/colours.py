"""Colours of groups that the eye tells apart, on white and on black; the groups beyond share one grey."""

# fmt: off
COLOURS = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988",
    "#8855cc", "#b0724a", "#f5a3c7", "#7a9e00", "#0033aa", "#c51d34", "#00c2a8", "#8c6bb1",
    "#d95f02", "#5d8aa8", "#a6d854", "#6a3d0a",
]
# fmt: on
OTHER = "#9aa0a6"
