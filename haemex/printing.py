"""How the report prints values: numbers with their intervals, shares, settings, ranges."""

import math
import re

from haemex.statistics import round_half_up

# A hyphen before a digit with nothing before it that it could join: "-0.2", "(-0.2", not "2018-08-31", "1e-3", "a-1".
_MINUS = re.compile(r"(?<![^\s(\[,;:=±/])-(?=\.?\d)")


def number(value, decimals=2):
    """Print a number as the tables do, halves up; "N/A" where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "N/A"
    return round_half_up(float(value), decimals).replace("-", "−")


def minus_signs(text):
    """Turn the hyphens that stand for a minus into minus signs; dates, names and exponents keep theirs.

    Parameters
    ----------
    text : object
        What a template is about to print. Only plain text is changed, markup is not.
    """
    return _MINUS.sub("−", text) if type(text) is str else text


def percent(value, decimals=1):
    """Print a share as percent."""
    return "N/A" if value is None else f"{number(100 * value, decimals)} %"


def share(part, whole):
    """Print "22 of 77 (28.6 %)"."""
    return f"{part} of {whole} ({percent(part / whole)})" if whole else f"{part} of {whole}"


def interval(row, name, decimals=2):
    """Print an estimate with its interval, as the paper's Table 2 does: "0.80 (0.70 to 0.90)".

    Parameters
    ----------
    row : dict
        Holds `name`, `name_lower` and `name_upper`.
    name : str
        The measure.
    decimals : int
        Digits after the point.
    """
    estimate, lower, upper = row[name], row[f"{name}_lower"], row[f"{name}_upper"]
    if estimate is None:
        return "N/A"
    if lower is None or upper is None:
        return f"{number(estimate, decimals)} (N/A)"
    return f"{number(estimate, decimals)} ({number(lower, decimals)} to {number(upper, decimals)})"


def setting(value):
    """Print the value of a setting: three numbers as "256 × 256 × 32", yes and no for truth values."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if all(isinstance(one, int | float) for one in value) and len(value) == 3:
            return " × ".join(setting(one) for one in value)
        return ", ".join(map(setting, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "not set" if value is None else str(value)


def span(value):
    """Print a range: "20 to 24"; the hyphens of dates do not break, and those of numbers are minus signs."""
    return " to ".join(minus_signs(setting(one)).replace("-", "\u2011") for one in value)
