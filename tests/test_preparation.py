import copy
import json

import pytest
import yaml

from haemex.errors import InputError
from haemex.preparation import check_preparation
from haemex.provenance import ROOT

CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
GOOD = {section: CONFIG[section] for section in ("convert", "skullstrip", "resample")}


def test_what_the_config_says_is_usable_also_after_a_journey_as_json():
    assert check_preparation(GOOD, "model.json") == GOOD
    assert check_preparation(json.loads(json.dumps(GOOD)), "model.json") == GOOD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resample.matrix", [12, 12]),
        ("resample.matrix", [12, 12, 8.0]),
        ("resample.matrix", [12, 12, -8]),
        ("resample.matrix", [12, 12, "8"]),
        ("resample.matrix", [12, 12, True]),
        ("resample.matrix", [10**5, 10**5, 10**5]),
        ("resample.matrix", None),
        ("resample.field_of_view_mm", [60.0, 60.0, 0.0]),
        ("resample.field_of_view_mm", [60.0, 60.0, float("nan")]),
        ("resample.field_of_view_mm", [60.0, 60.0, 1e300]),
        ("resample.field_of_view_mm", [10**400, 60.0, 60.0]),
        ("resample.window_hu", [100.0, 0.0]),
        ("resample.window_hu", {"0": 1}),
        ("resample.window_hu", "01"),
        ("resample.spline_order", 9),
        ("resample.spline_order", 3.0),
        ("resample.spline_order", [3]),
        ("skullstrip.seal_gap_mm", -1),
        ("skullstrip.seal_gap_mm", float("inf")),
        ("skullstrip.min_brain_ml", "500"),
        ("skullstrip.plausible_brain_ml", [1900, 900]),
        ("convert.slice_thickness_mm", 0),
        ("convert.slice_thickness_mm", True),
    ],
)
def test_what_makes_no_scan_is_refused_by_name(name, value):
    section, setting = name.split(".")
    other = copy.deepcopy(GOOD)
    other[section][setting] = value
    with pytest.raises(InputError, match=rf"^model\.json: .*{section}\.{setting} is "):
        check_preparation(other, "model.json")
    del other[section][setting]
    with pytest.raises(InputError, match=rf"{section}\.{setting} is missing"):
        check_preparation(other, "model.json")


def test_settings_that_would_reach_a_stage_as_something_else_are_refused():
    other = copy.deepcopy(GOOD)
    other["resample"]["json_out"] = "/etc/passwd"
    with pytest.raises(InputError, match=r"resample\.json_out is a setting that this haemex does not know"):
        check_preparation(other, "model.json")
    for wrong in (None, [], {}, {**GOOD, "augment": {}}, {"resample": GOOD["resample"]}):
        with pytest.raises(InputError, match="sections are not convert, skullstrip, resample"):
            check_preparation(wrong, "model.json")
    with pytest.raises(InputError, match="skullstrip is 7"):
        check_preparation({**GOOD, "skullstrip": 7}, "model.json")
