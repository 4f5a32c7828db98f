import copy

import pytest
import yaml

from haemex.errors import InputError
from haemex.provenance import ROOT
from haemex.settings import CONFIG_SCHEMA, candidate_names, candidate_settings, check_config, nearest


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def test_the_papers_protocol_is_the_default(config):
    """Every number below is printed in the paper or its supplement."""
    check_config(config)
    assert config["eligibility"] == {"min_age_years": 18, "max_onset_to_ct_h": 8.0, "followup_h": [20.0, 24.0]}
    assert config["cohorts"] == {"train": ["2012-02-01", "2018-08-31"], "test": ["2018-09-01", "2019-10-31"]}
    assert config["expansion"] == {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"}
    assert config["resample"]["field_of_view_mm"] == [112, 112, 160]
    assert config["resample"]["matrix"] == [256, 256, 32]
    assert config["resample"]["window_hu"] == [0, 100]
    assert (config["augment"]["copies"], config["augment"]["rotation_deg"]) == (10, 5)
    assert (config["augment"]["scaling_percent"], config["augment"]["translation_percent"]) == (10, 10)
    assert config["folds"] == 5
    training = config["training"]
    assert (training["epochs"], training["batch_size"], training["learning_rate"]) == (40, 1, 1e-4)
    assert (training["rate_milestones"], training["rate_factor"]) == ([20, 30], 0.1)
    assert training["loss_weights"] == {"segmentation": 0.9, "classification": 0.1}
    assert config["network"]["widths"] == [16, 32, 64, 128]


@pytest.mark.parametrize("section", [None, "resample", "training", "phantom"])
def test_a_misspelt_key_is_refused_with_the_nearest_one(config, section):
    config["phantom"] = {"train": 8, "test": 6, "excluded_each": 1, "matrix": 64}
    place = config if section is None else config[section]
    known = next(iter(place))
    place[known[:-1] + "_x"] = place[known]
    with pytest.raises(InputError) as refusal:
        check_config(config)
    assert known[:-1] + "_x" in str(refusal.value)
    assert f"did you mean `{known}`?" in str(refusal.value)


def test_all_problems_are_named_at_once(config):
    config["sed"] = 1
    config["training"]["epochs"] = 0
    del config["folds"]
    with pytest.raises(InputError) as refusal:
        check_config(config)
    for part in ("`sed`", "`training.epochs`", "'folds'"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c["resample"].update(matrix=[256, 256, 30]), "divisible by 4"),
        (lambda c: c["cohorts"].update(test=["2018-08-31", "2019-10-31"]), "has to begin after"),
        (lambda c: c.update(candidates={"base": None}), "names none"),
        (lambda c: c["resample"].update(window_hu=[100, 0]), "not below"),
        (lambda c: c["eligibility"].update(followup_h=[24, 20]), "above"),
        (lambda c: c.update(seed_study={"candidate": "bas", "seeds": [1, 2]}), "seed_study.candidate.*mean `base`"),
        (lambda c: c.update(scanner_study={"candidate": "bas", "scanners": ["A"]}), "scanner_study.candidate.*`base`"),
    ],
)
def test_contradictions_are_refused(config, change, word):
    change(config)
    with pytest.raises(InputError, match=word):
        check_config(config)


@pytest.fixture
def external(config):
    return config | {"model": "results/demo/final/model", "cohorts": {"train": None, "test": config["cohorts"]["test"]}}


def test_an_external_evaluation_trains_nothing(external):
    check_config(external)
    external["phantom"] = {"train": 0, "test": 6, "excluded_each": 1, "matrix": 64}
    check_config(external)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(seed_study={"candidate": "base", "seeds": [1, 2]}), "`seed_study` trains"),
        (lambda c: c.update(scanner_study={"candidate": "base", "scanners": ["A"]}), "`scanner_study` trains"),
        (lambda c: c["cohorts"].update(train=["2012-02-01", "2018-08-31"]), "`cohorts.train`.*set it to null"),
        (lambda c: c["cohorts"].update(test=["2019-10-31", "2018-09-01"]), "`cohorts.test`.*before the first"),
        (lambda c: c["cohorts"].update(test=None), "`cohorts.test`"),
        (lambda c: c.update(phantom={"train": 8, "test": 6, "excluded_each": 1, "matrix": 64}), "`phantom.train`.*0"),
        (lambda c: c.pop("model"), "`cohorts.train` is null: only an external evaluation"),
        (lambda c: c.update(model=""), "`model`"),
    ],
)
def test_what_an_external_evaluation_cannot_have_is_refused(external, change, word):
    change(external)
    with pytest.raises(InputError, match=word):
        check_config(external)


def test_who_trains_needs_patients(config):
    for train in (0, 7):
        config["phantom"] = {"train": train, "test": 6, "excluded_each": 1, "matrix": 64}
        with pytest.raises(InputError, match=r"phantom\.train.*8 patients"):
            check_config(config)


def test_the_shipped_external_evaluation_fits_the_demo(config):
    """Its scans are prepared as the demo's, or the demo's model would refuse them."""
    demo, external = (yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("demo", "external"))
    assert external["resample"] == demo["resample"] and not {"convert", "skullstrip"} & {*demo, *external}
    assert external["model"] == f"results/{demo['study']}/final/model"
    assert external["cohort_table"] == f"results/{external['study']}/phantom/cohort.tsv"
    check_config({**config, **external, "resample": {**config["resample"], **external["resample"]}})


def test_a_scanner_study_names_its_scanners_once(config):
    config["scanner_study"] = {"candidate": "base", "scanners": ["GE MEDICAL SYSTEMS Optima CT540", "not recorded"]}
    check_config(config)
    for scanners in ([], [""], ["A", "A"], "A", [64]):
        config["scanner_study"]["scanners"] = scanners
        with pytest.raises(InputError, match=r"scanner_study\.scanners"):
            check_config(config)


def test_a_refused_value_is_explained_without_a_regular_expression_or_a_python_type(config):
    config["study"] = "my study"
    config["cohorts"] = yaml.safe_load("{train: [2012-02-01, '2018/08/31'], test: [2018-09-01, 2019]}")
    with pytest.raises(InputError) as refused:
        check_config(config)
    assert refused.value.problem.split("; ") == [
        'the config is refused: `cohorts.test.0`: a date needs quotation marks: "2018-09-01"',
        "`cohorts.test.1`: 2019 is not of type 'string'",
        '`cohorts.train.0`: a date needs quotation marks: "2012-02-01"',
        "`cohorts.train.1`: '2018/08/31' does not fit (a day, as \"2018-08-31\")",
        "`study`: 'my study' does not fit (name of the study, letters, digits, _, - and . only, - and . not first",
        "results go to results/<study>/)",
    ]


def test_a_candidate_changes_what_it_names_and_nothing_else(config):
    config["candidates"]["narrow"] = {"network": {"widths": [4, 8, 16, 32]}}
    before = copy.deepcopy(config)
    narrow = candidate_settings(config, "narrow")
    assert narrow["network"]["widths"] == [4, 8, 16, 32]
    assert narrow["network"]["convs_per_level"] == 4
    assert narrow["training"] == config["training"]
    assert config == before


def test_null_takes_a_candidate_away(config):
    config["candidates"]["rate_3e-4"] = None
    assert candidate_names(config) == ["base", "rate_3e-5"]


def test_the_report_compares_a_run_with_the_protocol_as_shipped(config):
    protocol = yaml.safe_load((ROOT / "workflow/report/protocol.yaml").read_text())
    assert protocol == {key: value for key, value in config.items() if key not in ("study", "seed", "cohort_table")}


def test_nearest_lists_everything_when_nothing_is_near():
    assert nearest("zzz", ["folds", "seed"]) == "known are: folds, seed"


def test_every_key_is_described():
    """A closed schema whose leaves all carry a description; config/README.md names every one of them."""
    text = (ROOT / "config/README.md").read_text()

    def walk(schema, path):
        for name, rule in schema.get("properties", {}).items():
            nested = rule.get("$ref", "").removeprefix("#/$defs/")
            inner = (
                yaml.safe_load(CONFIG_SCHEMA.read_text())["$defs"][nested]
                if nested in ("network", "training")
                else rule
            )
            if "properties" in inner:
                assert inner.get("additionalProperties") is False, [*path, name]
                walk(inner, [*path, name])
            else:
                assert "description" in rule or nested == "", [*path, name]
                assert f"`{name}`" in text, f"config/README.md does not explain {'.'.join([*path, name])}"

    walk(yaml.safe_load(CONFIG_SCHEMA.read_text()), [])
