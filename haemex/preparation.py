"""How a scan is prepared for a network: the settings that travel in a model bundle, checked before a stage gets them.

A study's own settings are checked by the schema of its config. Those of a bundle may come from anywhere: they may ask
for a grid that no memory holds, or name what a stage takes for something else.
"""

import math
import sys

from haemex.errors import InputError

# Far above any head scan, far below what no memory holds.
MOST_VOXELS, FARTHEST_MM = 2**27, 1e4


def check_preparation(preparation, file):
    """Check the sections of the config that say how a scan is prepared.

    Parameters
    ----------
    preparation : object
        What a bundle's description holds in their place.
    file : path-like
        The description, for the message.

    Returns
    -------
    dict of dict
        The same: `convert`, `skullstrip` and `resample`, as in the config.

    Raises
    ------
    InputError
        Names the setting that is missing, unknown or unusable.
    """
    if not isinstance(preparation, dict) or set(preparation) != set(USABLE):
        raise _refused(file, f"its sections are not {', '.join(USABLE)}")
    for section, usable in USABLE.items():
        settings = preparation[section]
        if not isinstance(settings, dict):
            raise _refused(file, f"{section} is {settings!r:.100}")
        for name in sorted({*settings, *usable}):
            if name not in usable:
                raise _refused(file, f"{section}.{name} is a setting that this haemex does not know")
            if name not in settings:
                raise _refused(file, f"{section}.{name} is missing")
            if not usable[name](settings[name]):
                raise _refused(file, f"{section}.{name} is {settings[name]!r:.100}")
    return preparation


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_numbers(values, count):
    return isinstance(values, list | tuple) and len(values) == count and all(map(_is_number, values))


def _is_length(value):
    return _is_number(value) and 0 < value <= FARTHEST_MM


def _is_range(values):
    return _are_numbers(values, 2) and values[0] < values[1]


def _is_grid(sizes):
    whole = _are_numbers(sizes, 3) and all(isinstance(size, int) and size > 0 for size in sizes)
    return whole and math.prod(sizes) <= MOST_VOXELS


USABLE = {
    "convert": {"slice_thickness_mm": _is_length},
    "skullstrip": {
        "seal_gap_mm": lambda value: _is_number(value) and 0 <= value <= 100,
        "min_brain_ml": lambda value: _is_number(value) and value >= 0,
        "plausible_brain_ml": _is_range,
    },
    "resample": {
        "field_of_view_mm": lambda values: _are_numbers(values, 3) and all(map(_is_length, values)),
        "matrix": _is_grid,
        "spline_order": lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 5,
        "window_hu": _is_range,
    },
}


def _refused(file, problem):
    return InputError(
        f"how scans are prepared for this model cannot be used: {problem}",
        "use the version of haemex that made the bundle, or take the bundle again from where it was made",
        file,
    )
