import copy
import os

import pytest
import yaml

from haemex.errors import InputError
from haemex.provenance import ROOT
from haemex.study import Study, one_sentence
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
    study = Study(config)
    before = study.listing("P1", "baseline_ct")
    os.utime(tmp_path / "scan" / "deep" / "1", (1, 1))
    assert study.listing("P1", "baseline_ct") == before
    (tmp_path / "scan" / "deep" / "1").write_bytes(b"1234")
    longer = study.listing("P1", "baseline_ct")
    (tmp_path / "scan" / "deep" / "1").rename(tmp_path / "scan" / "deep" / "2")
    assert len({before, longer, study.listing("P1", "baseline_ct")}) == 3


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
