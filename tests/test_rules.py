"""The house rules of the workflow, read from its files."""

import ast
import re

import pytest
import yaml

from haemex.provenance import ROOT

RULES = {
    match.group(1): match.group(0)
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for match in re.finditer(r"^rule (\w+):\n(?:(?:    .*)?\n)*", path.read_text(), re.M)
}
# The model bundle is one folder, so that it can be copied whole; what `comparators` adds to it may train nothing anew.
FOLDERS = {"comparators": "final"}
TRAINING = {"train", "final", "seed_study_train", "scanner_study_train"}


def test_there_is_a_script_for_every_rule_and_a_rule_for_every_script():
    assert set(RULES) == {path.stem for path in (ROOT / "workflow/scripts").glob("*.py")}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_one_name_in_three_places_and_says_what_it_depends_on(rule):
    text = RULES[rule]
    assert f'"../scripts/{rule}.py"' in text
    assert f'code=code_version("{rule}")' in text
    outputs = text[text.index("output:") : text.index("log:")]
    assert set(re.findall(r'"<results>/(\w+)/', outputs)) == {FOLDERS.get(rule, rule)}
    assert re.match(r'rule \w+:\n    """.+[.;]"""\n', text), "a one-line docstring"
    for directive in ("log:", "benchmark:", "conda:", "params:"):
        assert directive in text


@pytest.mark.parametrize("rule", RULES)
def test_training_asks_for_the_gpu_by_its_right_name_and_nothing_else_by_a_wrong_one(rule):
    resources = re.findall(r"resources:\n((?:        .*\n)+)", RULES[rule])
    named = re.findall(r"(\w+)=", "".join(resources))
    assert set(named) <= {"gpu", "mem_mb", "runtime"}, "a misspelt resource is ignored by Snakemake in silence"
    assert ("gpu" in named) == (rule in TRAINING | {"predict"})
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert profile["resources"] == ["gpu=1"]
    assert "code" not in profile["rerun-triggers"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_declares_its_memory_more_after_a_failure_and_its_time(rule):
    resources = "".join(re.findall(r"resources:\n((?:        .*\n)+)", RULES[rule]))
    assert re.search(r"mem_mb=lambda w, attempt: attempt \* (\d{4}|study\.training_mb\(.+\)),\n", resources)
    assert re.search(r"runtime=\d+,", resources)


def test_rule_files_hold_no_functions_and_open_with_their_contract():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        assert not re.search(r"^\s*(def|class) ", path.read_text(), re.M), path
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("rule", RULES)
def test_a_script_only_translates(rule):
    path = ROOT / "workflow/scripts" / f"{rule}.py"
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 60
    kinds = [type(node) for node in tree.body]
    assert set(kinds) <= {ast.Expr, ast.Import, ast.ImportFrom, ast.If}, "no logic at module level"
    assert ast.get_docstring(tree)


def test_the_snakefile_is_short():
    lines = (ROOT / "Snakefile").read_text().splitlines()
    assert len(lines) < 40


def test_no_module_is_called_by_what_says_nothing():
    names = {path.stem for path in (ROOT / "haemex").glob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
    assert (ROOT / "haemex/__init__.py").read_text() == ""


def test_package_sources_name_no_machine():
    for path in [*ROOT.glob("haemex/*.py"), *ROOT.glob("workflow/**/*"), *ROOT.glob("tests/*.py"), *ROOT.glob("*.md")]:
        if path.is_file() and path.suffix != ".png":
            assert not re.search(r"(?<![\w.])/(work|root)/", path.read_text()), path


def test_evaluate_declares_every_file_it_writes():
    from haemex.evaluation import EVALUATION_FILES
    from haemex.figures import FIGURES

    for name in EVALUATION_FILES:
        assert f'"<results>/evaluate/{name}"' in RULES["evaluate"]
    figures = re.search(r"figure=\[(.*?)\]", RULES["evaluate"], re.S).group(1)
    assert re.findall(r'"(\w+)"', figures) == list(FIGURES)
