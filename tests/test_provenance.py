import os

import pytest

from haemex.provenance import ROOT, WITHOUT_EFFECT, code_version, folder_version, modules_behind

RULES = sorted(path.stem for path in (ROOT / "workflow" / "scripts").glob("*.py"))


@pytest.fixture
def project(tmp_path):
    """A small project: rule `cut` -> knife -> steel; `logs` behind both; `spoon` behind nothing."""
    files = {
        "workflow/scripts/cut.py": "from haemex.knife import cut\nfrom haemex.logs import log_to\n\ncut()\n",
        "haemex/knife.py": '"""A knife."""\n\n\ndef cut():\n    """Cut."""\n'
        "    from haemex import steel\n\n    return steel.edge\n",
        "haemex/steel.py": "edge = 1  # mm\n",
        "haemex/logs.py": "import haemex.spoon\n",
        "haemex/spoon.py": "bowl = 2\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def edit(project, name, old, new):
    path = project / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


def test_finds_modules_behind_functions_and_leaves_out_what_has_no_effect(project):
    assert modules_behind(project / "workflow/scripts/cut.py", project) == ["knife", "steel"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("haemex/knife.py", '"""A knife."""', '"""A very sharp knife."""'),
        ("haemex/knife.py", '"""Cut."""', '"""Cut\n\n    in two."""'),
        ("haemex/steel.py", "# mm", "# micrometres, honest"),
        ("haemex/steel.py", "edge = 1", "edge =     1\n\n"),
        ("haemex/logs.py", "import haemex.spoon", "print(1)"),
        ("haemex/spoon.py", "bowl = 2", "bowl = 3"),
    ],
)
def test_rewording_and_unrelated_edits_change_nothing(project, name, old, new):
    before = code_version("cut", project)
    edit(project, name, old, new)
    assert code_version("cut", project) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("workflow/scripts/cut.py", "cut()\n", "cut(); cut()\n"),
        ("haemex/knife.py", "return steel.edge", "return -steel.edge"),
        ("haemex/steel.py", "edge = 1", "edge = 10"),
        ("haemex/steel.py", "edge = 1", "import haemex.spoon\nedge = 1"),
    ],
)
def test_real_edits_change_the_version(project, name, old, new):
    before = code_version("cut", project)
    edit(project, name, old, new)
    assert code_version("cut", project) != before


def test_a_text_that_is_no_docstring_counts(project):
    edit(project, "haemex/steel.py", "edge = 1", 'edge = "a"')
    before = code_version("cut", project)
    edit(project, "haemex/steel.py", '"a"', '"b"')
    assert code_version("cut", project) != before


def test_touching_a_file_changes_nothing(project):
    before = code_version("cut", project)
    edit(project, "haemex/steel.py", "edge", "edge")
    assert code_version("cut", project) == before


def test_a_folder_version_sees_names_and_contents_but_no_times(project):
    before = folder_version("haemex", root=project)
    (project / "haemex/steel.py").touch()
    assert folder_version("haemex", root=project) == before
    (project / "haemex/steel.py").write_text("edge = 2\n")
    changed = folder_version("haemex", root=project)
    (project / "haemex/steel.py").rename(project / "haemex/iron.py")
    assert len({before, changed, folder_version("haemex", root=project)}) == 3


def test_a_folder_version_of_single_files_sees_no_others(project):
    (project / "haemex/other.py").write_text("a = 1\n")
    before = folder_version("haemex", "steel.py", root=project)
    (project / "haemex/other.py").write_text("a = 2\n")
    assert folder_version("haemex", "steel.py", root=project) == before
    (project / "haemex/steel.py").write_text("edge = 2\n")
    assert folder_version("haemex", "steel.py", root=project) != before
    with pytest.raises(FileNotFoundError):
        folder_version("haemex", "misspelt.py", root=project)


def test_the_stages_depend_on_their_own_code_only():
    behind = {rule: modules_behind(ROOT / "workflow" / "scripts" / f"{rule}.py") for rule in RULES}
    assert "augment" in behind["augment"]
    for earlier in ("convert", "measure", "cohort", "skullstrip", "resample", "phantom", "check"):
        assert "augment" not in behind[earlier], earlier
        assert "training" not in behind[earlier], earlier
    for rule in ("convert", "measure", "skullstrip", "resample", "augment", "predict", "train", "final"):
        assert "statistics" not in behind[rule], rule
    assert not set().union(*behind.values()) & WITHOUT_EFFECT
