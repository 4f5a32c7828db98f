import copy
import os
import shutil

import pytest
import yaml
from fabricated_study import change_json, fabricate

from haemex.errors import InputError
from haemex.provenance import ROOT
from haemex.study import READINGS, STAGES, Study, one_sentence
from tests.test_cohort import write_table


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**yaml.safe_load((ROOT / "config/config.yaml").read_text()), "cohort_table": "table.tsv"}


def test_without_a_table_one_sentence_says_what_to_do(config):
    with pytest.raises(SystemExit) as end, one_sentence():
        Study(config)
    assert "make demo" in end.value.code and "config/README.md" in end.value.code and "table.tsv" in end.value.code


def test_patients_are_split_and_the_ineligible_left_out(config, tmp_path):
    write_table(
        tmp_path / "table.tsv",
        {"patient": "B"},
        {"patient": "A"},
        {"patient": "T", "admission_date": "2019-01-01"},
        {"patient": "X", "age_years": "3"},
        {"patient": "Y", "admission_date": "2030-01-01"},
    )
    study = Study(config)
    assert (study.training, study.testing, study.patients) == (["A", "B"], ["T"], ["A", "B", "T"])
    assert study.candidates == ["base", "rate_3e-4", "rate_3e-5"]


def test_files_that_are_not_there_are_left_to_their_job(config, tmp_path):
    write_table(tmp_path / "table.tsv", {"baseline_ct": "scan", "baseline_mask": "mask.nii.gz"})
    study = Study(config)
    assert study.given("P1", *study.FILES) == []
    (tmp_path / "scan").mkdir()
    assert study.given("P1", *study.FILES) == ["scan"]
    assert study.path("P1", "baseline_mask") == "mask.nii.gz" and study.path("P1", "followup_mask") == ""


def test_the_listing_of_a_scan_sees_names_and_sizes_but_no_times(config, tmp_path):
    write_table(tmp_path / "table.tsv", {"baseline_ct": "scan"})
    (tmp_path / "scan" / "deep").mkdir(parents=True)
    (tmp_path / "scan" / "deep" / "1").write_bytes(b"123")

    def listing():
        return Study(config).listing("P1", "baseline_ct")

    before = listing()
    os.utime(tmp_path / "scan" / "deep" / "1", (1, 1))
    assert listing() == before
    (tmp_path / "scan" / "deep" / "1").write_bytes(b"1234")
    longer = listing()
    (tmp_path / "scan" / "deep" / "1").rename(tmp_path / "scan" / "deep" / "2")
    renamed = listing()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3").write_bytes(b"1")
    (tmp_path / "scan" / "link").symlink_to(tmp_path / "elsewhere")
    linked = listing()
    assert len({before, longer, renamed, linked}) == 4
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "scan")  # a circle
    (tmp_path / "elsewhere" / "nowhere").symlink_to(tmp_path / "absent")
    assert listing() == linked
    assert Study(config).listing("P1", "followup_ct") == ""


def test_a_clinical_value_does_not_touch_what_decides_eligibility(config, tmp_path):
    write_table(tmp_path / "table.tsv", {"nihss": "3"}, columns=["nihss"])
    before = Study(config)
    write_table(tmp_path / "table.tsv", {"nihss": "4"}, columns=["nihss"])
    after = Study(config)
    assert before.eligibility_digest() == after.eligibility_digest()
    assert before.table_digest() != after.table_digest()
    write_table(tmp_path / "table.tsv", {"nihss": "4", "age_years": "70"}, columns=["nihss"])
    assert Study(config).eligibility_digest() != after.eligibility_digest()


def test_the_synthetic_table_is_written_once(config, tmp_path):
    demo = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    merged = copy.deepcopy(config)
    merged.update(phantom=demo["phantom"], cohort_table="results/demo/phantom/cohort.tsv")
    study = Study(merged)
    table = tmp_path / "results/demo/phantom/cohort.tsv"
    os.utime(table, (1, 1))
    again = Study(merged)
    assert table.stat().st_mtime == 1
    assert again.table_digest() == study.table_digest()
    assert len(study.training) == demo["phantom"]["train"] and len(study.testing) == demo["phantom"]["test"]
    assert again.truth == ["results/demo/phantom/truth.tsv"] and (tmp_path / again.truth[0]).is_file()


def test_a_misspelt_key_is_refused_before_the_table_is_looked_for(config):
    config["epochs"] = 3
    with pytest.raises(InputError, match="unknown key `epochs`"):
        Study(config)


def test_a_table_with_faults_builds_a_study_that_keeps_them(config, tmp_path):
    write_table(
        tmp_path / "table.tsv",
        {"patient": "A"},
        {"patient": "B", "age_years": "6,1"},
        {"patient": "C", "admission_date": "1.3.2015"},
        {"patient": "D", "age_years": "6,1", "haemorrhage_site": "infratentorial"},
        {"patient": "E", "sex": "male"},
        {"patient": "F", "age_years": "6,1", "admission_date": "2030-01-01"},
        {"patient": "G", "age_years": ""},
        {"patient": "A", "age_years": "3"},
    )
    study = Study(config)
    assert [(fault["patient"], fault["column"]) for fault in study.faults] == [
        ("B", "age_years"), ("C", "admission_date"), ("D", "age_years"), ("E", "sex"), ("F", "age_years"), ("A", ""),
    ]  # fmt: skip
    assert study.patients == ["A", "E"]
    # D stays out whatever the age, and so does F, admitted after both periods; nobody knows the age of G.
    assert study.checked == ["A", "B", "C", "E"]
    assert study.rows["A"]["age_years"] == 61.5


def test_a_missing_column_keeps_nobody_from_the_check(config, tmp_path):
    table = write_table(tmp_path / "table.tsv", {"patient": "A"}, {"patient": "B"}, {"patient": "C", "age_years": "3"})
    table.write_text(table.read_text().replace("onset_to_ct_h", "onset_h"))
    study = Study(config)
    assert study.patients == [] and study.checked == ["A", "B"]


def test_a_pinned_series_changes_its_own_conversion_and_the_check_alone(config, tmp_path):
    pins = ["baseline_series", "followup_series"]
    write_table(tmp_path / "table.tsv", {"patient": "A"}, {"patient": "B"}, columns=pins)
    before = Study(config)
    write_table(tmp_path / "table.tsv", {"patient": "A"}, {"patient": "B", "baseline_series": "3.1"}, columns=pins)
    after = Study(config)
    assert before.path("B", "baseline_series") == "" and after.path("B", "baseline_series") == "3.1"
    assert before.path("A", "baseline_series") == after.path("A", "baseline_series")
    assert before.table_digest() == after.table_digest()
    assert before.eligibility_digest() == after.eligibility_digest()
    assert before.check_digest() != after.check_digest()


def test_the_check_runs_again_after_any_change_of_the_table(config, tmp_path):
    table = write_table(tmp_path / "table.tsv", {"baseline_ct": "scan"})
    (tmp_path / "scan").mkdir()
    digests = [Study(config).check_digest()]
    (tmp_path / "scan" / "1").write_bytes(b"1")
    digests.append(Study(config).check_digest())
    table.write_text(table.read_text().replace("\tsex", "\tsex\tnew").replace("\tm\t", "\tm\t\t"))
    digests.append(Study(config).check_digest())  # an unknown column changes no row
    assert len(set(digests)) == 3


def test_the_readings_are_those_of_the_markers():
    from haemex.markers import MARKERS

    assert tuple(MARKERS) == READINGS


# --- external evaluation -----------------------------------------------------------------------------------------


@pytest.fixture
def external(config, tmp_path):
    """A config that evaluates the fabricated study's model, and a table of two patients."""
    made = fabricate(tmp_path / "made", matrix=24, slices=6)
    shutil.copytree(made.R / "final/model", tmp_path / "model")
    write_table(
        tmp_path / "table.tsv",
        {"patient": "A", "admission_date": "2019-01-01"},
        {"patient": "B", "admission_date": "2019-02-01"},
        {"patient": "early"},
    )
    resample = {**config["resample"], "field_of_view_mm": [160.0, 160.0, 160.0], "matrix": [32, 32, 16]}
    cohorts = {"train": None, "test": ["2018-09-01", "2019-10-31"]}
    return config | {"model": "model/", "cohorts": cohorts, "resample": resample}


def test_an_external_study_has_test_patients_and_trains_nothing(external):
    study = Study(external)
    assert (study.training, study.testing, study.patients) == ([], ["A", "B"], ["A", "B"])
    assert study.external and study.model == "model" and study.folds == [0, 1, 2] and study.candidates == []
    assert study.stages == (
        "check", "convert", "measure", "markers", "skullstrip", "resample", "inspect", "qc", "cohort",
        "predict", "evaluate", "cards", "report",
    )  # fmt: skip
    assert study.of_training(["<results>/select/selected.json"]) == []
    own = ["<results>/final/model/model.json", "<results>/final/model/fold0.safetensors"]
    assert study.of_model(own) == ["model/model.json", "model/fold0.safetensors"]


def test_a_study_of_its_own_trains_and_keeps_its_model(config, tmp_path):
    write_table(tmp_path / "table.tsv", {})
    study = Study(config)
    assert not study.external and study.stages == STAGES and list(study.folds) == [0, 1, 2, 3, 4]
    own = ["<results>/final/model/model.json"]
    assert study.of_model(own) == study.of_training(own) == own


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c, f: c.update(model="nowhere"), "nowhere/model.json: there is no model bundle here"),
        (lambda c, f: (f / "comparators.json").unlink(), "has no comparators.json"),
        (lambda c, f: change_json(f / "model.json", lambda m: m.update(format=2)), "format is 2, this haemex reads 3"),
        (lambda c, f: c["resample"].update(window_hu=[0, 80]), r"resample.window_hu is \[0, 80\], .* \[0.0, 100.0\]"),
        (lambda c, f: c.update(skullstrip=c["skullstrip"] | {"seal_gap_mm": 9}), "skullstrip.seal_gap_mm is 9, .* 4.0"),
        (lambda c, f: c.update(convert={"slice_thickness_mm": 2.5}), "convert.slice_thickness_mm is 2.5, .* 5.0"),
        (lambda c, f: c.update(seed_study={"candidate": "base", "seeds": [1, 2]}), "`seed_study` trains"),
    ],
)
def test_what_an_external_study_cannot_use_is_refused_before_any_computing(external, tmp_path, change, match):
    change(external, tmp_path / "model")
    with pytest.raises(InputError, match=match):
        Study(external)
