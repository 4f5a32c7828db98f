"""The quality page: who stands where, what the page says of it, and what a failed run leaves behind."""

import json
import os
import re

import numpy as np
import pytest
import yaml

from haemex.errors import InputError
from haemex.failures import collect, patient_jobs
from haemex.logs import log_to
from haemex.nifti import write_volume
from haemex.provenance import ROOT
from haemex.qc import (
    COLUMNS,
    MAX_PLAIN_PICTURES,
    NUMBERS,
    WHOLE_BRAIN_MM,
    cells,
    end_badly,
    lost_haematoma,
    sentence,
    show,
    states,
    summary,
    tile,
    worst_first,
    write_page,
    write_provisional_page,
)
from haemex.tables import read_table

TEMPLATES = ROOT / "workflow/report"
FIELD_MM = [112.0, 112.0, 160.0]


def _row(patient, warnings=(), outside=0.0, haematoma_ml=10.0, **changes):
    """The row of an inspected patient, as `haemex.inspection` writes it."""
    row = {
        **{key: 1.0 for key, *_ in NUMBERS},
        "patient": patient,
        "warnings": [{"problem": problem, "action": "look at `it`"} for problem in warnings],
        "outside_field": outside,
        "lost_ml": outside * haematoma_ml,
        "haematoma_ml": haematoma_ml,
        "outside_brain": 0.0,
        "slices": 30,
        "pixel_mm": [0.4883, 0.4883],
        "matrix": [512, 512],
        "even": True,
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Force",
        "kernel": None,
        "picture_px": [1400, 1300],
        "key_tile_px": [200, 300, 180, 220],
    }
    return {**row, **changes}


@pytest.fixture
def study(tmp_path):
    """A folder of results in which inspections and logs can be put."""
    return _Study(tmp_path / "results")


class _Study:
    def __init__(self, folder):
        self.folder, self.clock = folder, 1_700_000_000
        for stage in ("convert", "measure", "skullstrip", "resample", "inspect", "markers"):
            (folder / stage).mkdir(parents=True)
        self.page, self.table = folder / "qc/index.html", folder / "qc/qc.tsv"

    def _stamp(self, path):
        """Each file is a second younger than the one before."""
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    def inspect(self, patient, **changes):
        path = self.folder / f"inspect/{patient}.json"
        path.write_text(json.dumps(_row(patient, **changes)))
        path.with_suffix(".png").write_bytes(b"picture")
        self._stamp(path)
        return path

    def run(self, job, error=None, done=None):
        """Write the log of a job as a script does, e.g. `measure/P1`, and its JSON if it did its work."""
        path = self.folder / job
        try:
            with log_to(f"{path}.log", patient=path.name.split("_")[0]):
                print("some words")
                if error is not None:
                    raise error
        except SystemExit:
            pass
        if done is None:
            done = error is None
        if done:
            path.with_suffix(".json").write_text("{}")
        self._stamp(f"{path}.log")

    def states(self, patients, followed_up=()):
        """Where every patient stands, by the logs."""
        return states(self.folder, patients, self.failures(patients, followed_up))

    def failures(self, patients, followed_up=()):
        jobs = [job for patient in patients for job in patient_jobs(patient, patient in followed_up)]
        return collect(self.folder, jobs)

    def fail(self, patients, followed_up=()):
        """What `onerror` does with the page."""
        write_provisional_page(
            failures=self.failures(patients, followed_up),
            patients=patients,
            page_out=self.page,
            table_out=self.table,
            field_of_view_mm=FIELD_MM,
            template_folder=TEMPLATES,
        )
        return self.page.read_text() if self.page.exists() else None

    def finish(self, patients):
        """What the rule does."""
        self.page.parent.mkdir(exist_ok=True)
        write_page(
            inspected=[self.folder / f"inspect/{patient}.json" for patient in patients],
            field_of_view_mm=FIELD_MM,
            template_folder=TEMPLATES,
            page_out=self.page,
            table_out=self.table,
        )
        return self.page.read_text()


def _order(page):
    return re.findall(r'<tbody class="(\w+)" id="(\w+)"', page)


REFUSED = InputError("the mask is <empty>", "draw it; see `baseline_mask`", "data/mask.nii.gz")


# --- the complete page ---------------------------------------------------------------------------------------------


def test_the_worst_come_first(study):
    study.inspect("P1")
    study.inspect("P2", outside=0.004)
    study.inspect("P3", warnings=["a"])
    study.inspect("P4", warnings=["a", "b"])
    study.inspect("P5", warnings=["a"], outside=0.3)
    page = study.finish(["P1", "P2", "P3", "P4", "P5"])
    assert _order(page) == [("warned", "P4"), ("warned", "P5"), ("warned", "P3"), ("clean", "P2"), ("clean", "P1")]
    assert "provisional" not in page


def test_failed_stand_above_warned_and_waiting_above_clean():
    states = [("A", "inspected", 0), ("B", "waiting", 0), ("C", "inspected", 1), ("D", "failed", 0)]
    rows = [{"patient": name, "state": state, "warnings": ["x"] * warned} for name, state, warned in states]
    assert [row["patient"] for row in worst_first(rows)] == ["D", "C", "B", "A"]


def test_the_page_says_in_words_how_much_haematoma_is_lost(study):
    study.inspect("P1", outside=0.25, haematoma_ml=40.0)
    study.inspect("P2", outside=0.005, haematoma_ml=20.0)
    study.inspect("P3")
    text = " ".join(re.sub("<[^>]*>", "", study.finish(["P1", "P2", "P3"])).split())
    assert (
        "In 1 of 3 patients more than 1 % of the haematoma lies outside the field of view of 112 x 112 x 160 mm, in 2 "
        "any of it; altogether 10.1 mL of 70.0 mL, at worst 25.0 % of one haematoma (patient P1)." in text
    )
    assert "config/whole_brain.yaml is the ready alternative: a field of view of 224 x 224 x 160 mm" in text


def test_where_nothing_is_lost_nothing_is_recommended(study):
    study.inspect("P1")
    page = study.finish(["P1"])
    assert "In none of 1 patient does any of the haematoma (10.0 mL altogether)" in " ".join(page.split())
    assert "whole_brain.yaml" not in page


def test_the_recommended_field_of_view_is_that_of_the_config_file_and_larger():
    whole_brain = yaml.safe_load((ROOT / "config/whole_brain.yaml").read_text())
    assert tuple(whole_brain["resample"]["field_of_view_mm"]) == WHOLE_BRAIN_MM
    rows = [{**_row("P1", outside=0.5), "state": "inspected"}]
    assert lost_haematoma(rows, FIELD_MM)["whole_brain"] == "224 x 224 x 160"
    assert lost_haematoma(rows, WHOLE_BRAIN_MM)["whole_brain"] is None
    assert lost_haematoma([], FIELD_MM)["worst"] is None


def test_the_table_holds_every_number_in_full(study):
    study.inspect("007", warnings=["one\nproblem", "another"], outside=1 / 3, followup_ml=None)
    study.finish(["007"])
    [row] = read_table(study.table)
    assert tuple(row) == COLUMNS
    assert row["patient"] == "007" and row["warnings"] == 2 and row["problems"] == "one problem | another"
    assert row["outside_field"] == 1 / 3 and row["followup_ml"] is None and row["kernel"] is None
    assert row["matrix"] == "512 x 512" and row["pixel_mm"] == "0.4883 x 0.4883" and row["even"] == "even"


def test_the_page_needs_no_network_and_links_to_the_pictures_relatively(study):
    study.inspect("P1", warnings=["a"])
    page = study.finish(["P1"])
    links = set(re.findall(r'(?:src|href)="([^"]*)"', page))
    assert links == {"../inspect/P1.png"}
    assert "http" not in page and "@import" not in page and 'loading="lazy"' in page
    assert str(study.folder) not in page


def test_headings_are_buttons_and_every_cell_can_be_sorted(study):
    study.inspect("P1", followup_ml=None, tilt_deg=-3.5)
    page = study.finish(["P1"])
    buttons = re.findall(r'<button type="button" data-column="(\d+)"', page)
    body = re.search(r"<tbody.*?</tbody>", page, re.S).group(0)
    values = re.findall(r'data-value="([^"]*)"', body)
    assert buttons == [str(number) for number in range(len(values))]
    assert values[3] == "" and "-3.5" in values, "an empty value sorts last; numbers as a machine reads them"
    units = re.findall(r"<small>([^<]*)</small>", page)
    assert units == ["mL", "mL", "%", "mL", "%", "HU", "mL", "HU", "HU", "HU", "mm", "mm", "°", "mm"]


def test_numbers_are_printed_as_the_page_wants_them():
    assert show(0.0312, "outside_field", 1) == "3.1" and show(0.0001, "outside_field", 1) == "< 0.1"
    assert show(0.0, "outside_field", 1) == "0.0" and show(None, "csf_hu", 1) == "–"
    assert show(-4.0, "csf_hu", 1) == "−4.0" and show(1459.6, "brain_ml", 0) == "1460"
    row = {**_row("P1", pixel_mm=[0.5, 0.625]), "state": "inspected", "scanner": None}
    assert cells(row)[-2:] == [("0.500 x 0.625", "0.500 x 0.625"), ("", "")]
    assert set(cells({"state": "failed"})) == {("", "")}


def test_median_and_range_leave_out_who_has_no_value():
    rows = [
        {**_row(f"P{n}", csf_hu=value, noise_hu=None), "state": "inspected"} for n, value in enumerate((3, None, 9, 4))
    ]
    found = dict(zip((key for key, *_ in NUMBERS), summary([*rows, {"state": "failed"}]), strict=True))
    assert found["csf_hu"] == ("4.0", "3.0", "9.0") and found["noise_hu"] == ("", "", "")


def test_the_small_window_shows_the_key_slice():
    placed = tile(_row("P1"), height_px=110)  # half size
    assert placed == {"width": 90, "height": 110, "picture_width": 700, "left": -100, "top": -150}
    assert tile({"state": "failed"}) is None


def test_words():
    assert sentence("look at it") == "Look at it." and sentence("3 mm.") == "3 mm."


# --- who failed ----------------------------------------------------------------------------------------------------


def test_a_refusal_is_told_with_stage_and_sentence(study):
    study.run("convert/P1_baseline")
    study.run("measure/P1", REFUSED)
    study.run("convert/P10_baseline")
    [first, other] = study.states(["P1", "P10"], [])
    assert first["state"] == "failed"
    assert first["failures"] == [{"stage": "measure", "sentence": str(REFUSED), "upstream": True}]
    assert other["state"] == "waiting", "P1 is not P10"


def test_two_jobs_of_one_patient_can_fail(study):
    study.run("convert/P1_baseline")
    study.run("convert/P1_followup", InputError("no series", "export again", "b"))
    study.run("skullstrip/P1", InputError("no brain found", "check the scan"))
    [row] = study.states(["P1"], ["P1"])
    assert [one["stage"] for one in row["failures"]] == ["convert follow-up", "skullstrip"]
    [row] = study.states(["P1"], [])
    assert [one["stage"] for one in row["failures"]] == ["skullstrip"], "the table names no follow-up scan any more"


def test_a_fault_of_haemex_and_a_job_that_was_stopped(study, capsys):
    study.run("convert/P1_baseline", KeyError("affine"))
    study.run("convert/P2_baseline", done=False)
    [fault, stopped] = (row["failures"][0]["sentence"] for row in study.states(["P1", "P2"], []))
    assert fault.startswith("KeyError, a fault of haemex. ") and "P1_baseline.log" in fault
    assert "affine" not in fault, "the words of an unforeseen error may quote a header"
    assert "out of memory" in stopped and "P2_baseline.log" in stopped


def test_what_failed_before_the_inspection_is_of_the_past_and_after_it_counts(study):
    study.run("measure/P1", REFUSED)
    study.inspect("P1")
    assert [row["state"] for row in study.states(["P1"], [])] == ["inspected"]
    study.run("measure/P1", REFUSED, done=True)
    assert [row["state"] for row in study.states(["P1"], [])] == ["failed"]


def test_what_failed_before_a_job_it_depends_on_ran_again_is_of_the_past(study):
    study.run("inspect/P1", KeyError("old"))
    study.run("convert/P1_baseline")
    study.run("measure/P1", REFUSED)
    [row] = study.states(["P1"], [])
    assert [one["stage"] for one in row["failures"]] == ["measure"]


def test_the_terminal_is_told_where_the_complete_page_is(study, capsys):
    study.inspect("P1", warnings=["tilted"], outside_field=0.25)
    study.inspect("P2", outside_field=0.005)
    study.finish(["P1", "P2"])
    said = capsys.readouterr().out
    assert "quality of 2 patients: 1 with warnings, 1 with more than 1 % of the haematoma outside the field" in said
    assert f"see {study.page}" in said
    assert "Quality of the scans: study results</title>" in study.page.read_text()  # the folder above


# --- the page of a failed run --------------------------------------------------------------------------------------


def test_a_failed_run_lists_everybody(study):
    study.inspect("P1", warnings=["tilted"])
    study.run("measure/P2", REFUSED)
    page = study.fail(["P1", "P2", "P3"])
    assert _order(page) == [("failed", "P2"), ("warned", "P1"), ("waiting", "P3")]
    assert "data/mask.nii.gz: the mask is &lt;empty&gt;. Draw it; see <code>baseline_mask</code>." in page
    assert "This page is provisional: 1 patient failed, 1 not yet inspected." in page
    assert "<code>excluded</code>" in page and "failures.tsv" in page and not study.table.exists()


def test_a_run_that_failed_elsewhere_leaves_the_complete_page_alone(study):
    study.inspect("P1")
    complete = study.finish(["P1"])
    assert study.fail(["P1"]) == complete and study.table.exists()


def test_no_page_is_written_where_nobody_failed(study):
    assert study.fail(["P1", "P2"]) is None


def test_a_provisional_page_does_not_outlive_its_failures(study):
    study.run("measure/P1", REFUSED)
    assert _order(study.fail(["P1", "P2"]))[0] == ("failed", "P1")
    study.run("measure/P1")
    assert _order(study.fail(["P1", "P2"])) == [("waiting", "P1"), ("waiting", "P2")]
    for patient in ("P1", "P2"):
        study.inspect(patient)
    assert "provisional" not in study.finish(["P1", "P2"])


def test_the_outdated_row_of_a_failed_patient_goes_so_that_its_job_is_tried_again(study):
    kept, outdated = study.inspect("P1"), study.inspect("P2")
    study.finish(["P1", "P2"])
    study.run("measure/P2", REFUSED)
    study.fail(["P1", "P2"])
    assert kept.exists() and kept.with_suffix(".png").exists()
    assert not outdated.exists() and not outdated.with_suffix(".png").exists() and not study.table.exists()


def test_a_failed_patient_is_shown_plainly_until_mended(study):
    hu = np.full((6, 40, 40), -1000, np.int16)
    hu[:, 8:32, 8:32] = 40
    write_volume(study.folder / "convert/P1_baseline.nii.gz", hu, np.diag([4.0, 4, 5, 1]))
    study.run("measure/P1", REFUSED)
    page = study.fail(["P1"])
    picture = study.folder / "qc/P1.png"
    assert 'src="P1.png"' in page and picture.read_bytes().startswith(b"\x89PNG")
    picture.write_bytes(b"not drawn again")
    study.fail(["P1"])
    assert picture.read_bytes() == b"not drawn again"
    study.inspect("P1")
    study.finish(["P1"])
    assert not picture.exists()


def test_pictures_of_hundreds_of_failures_are_not_drawn_at_once(study):
    patients = [f"P{number}" for number in range(MAX_PLAIN_PICTURES + 3)]
    for patient in patients:
        write_volume(study.folder / f"convert/{patient}_baseline.nii.gz", np.zeros((2, 8, 8), np.int16), np.eye(4))
        study.run(f"measure/{patient}", REFUSED)
    study.fail(patients)
    assert len(list(study.page.parent.glob("*.png"))) == MAX_PLAIN_PICTURES
    page = study.fail(patients)
    assert len(list(study.page.parent.glob("*.png"))) == len(patients) == page.count("<img ")


def test_who_failed_beyond_the_page_alone_is_shown_with_the_numbers_and_keeps_them(study):
    inspected = study.inspect("P1", haematoma_ml=17.25)
    study.inspect("P2")
    study.finish(["P1", "P2"])
    study.run("markers/P1", KeyError("basin"))
    page = study.fail(["P1", "P2"])
    assert _order(page) == [("failed", "P1"), ("clean", "P2")] and "<b>markers:</b> KeyError" in page
    assert "17.25" in page and 'src="../inspect/P1.png"' in page
    assert inspected.exists() and not study.table.exists(), "the complete page is owed, the inspection is not"
    assert study.failures(["P1", "P2"])[0]["stage"] == "markers", "what was deleted is no failure of its own"
    study.run("markers/P1")
    assert "provisional" not in study.finish(["P1", "P2"])


def test_what_was_deleted_for_a_failed_patient_is_no_failure_of_the_next_run(study):
    for job in ("convert/P1_baseline", "inspect/P1"):
        study.run(job)
    study.inspect("P1")
    study.finish(["P1"])
    study.run("measure/P1", REFUSED)
    study.fail(["P1"])
    assert [one["stage"] for one in study.failures(["P1"])] == ["measure"]
    study.run("measure/P1")  # mended; the inspection does not come to run
    assert study.failures(["P1"]) == []


def test_a_run_that_failed_never_ends_with_a_traceback_of_ours(study, capsys):
    """Nothing can be written, yet the table is said; rows and a CT that cannot be read are said too."""
    study.run("measure/P1", REFUSED)
    study.page.parent.write_text("a file where the folder should be")
    places = {"page_out": study.page, "table_out": study.table, "failures_out": study.page.with_name("failures.tsv")}
    settings = {"field_of_view_mm": FIELD_MM, "template_folder": TEMPLATES}
    end_badly(study=_Asked(["P1"]), **places, **settings)
    said = capsys.readouterr().err
    assert "What failed could not be written down: " in said and "the mask is <empty>" in said
    study.page.parent.unlink()
    damages = {"P2": "{", "P3": "[]", "P4": "{}", "P5": '{"manufacturer": 1, "model": 2, "kernel": 3}', "P6": "null"}
    for patient, content in damages.items():
        (study.folder / f"inspect/{patient}.json").write_text(content)
    (study.folder / "convert/P1_baseline.nii.gz").write_text("no volume")
    end_badly(study=_Asked(["P1", *damages]), **places, **settings)
    said = capsys.readouterr().err
    assert "could not be written down" not in said and "haemex: 1 patient failed; which and why: " in said
    page = study.page.read_text()
    assert _order(page) == [("failed", patient) for patient in ("P1", *damages)]
    assert page.count("is damaged. The next run makes it anew.") == len(damages)
    assert not any((study.folder / f"inspect/{patient}.json").exists() for patient in damages), (
        "Snakemake has them whole"
    )
    assert "the column `excluded` of cohort.tsv" in " ".join(said.split())


class _Asked:
    """What `haemex.study.Study` answers, for a study without follow-up scans or a training."""

    stages, folds, config, table = ("check", "convert", "qc"), (), {}, "cohort.tsv"

    def __init__(self, patients):
        self.patients, self.training = patients, []

    def has_followup_scan(self, patient):
        return False
