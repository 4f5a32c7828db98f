"""Deviations from the paper's protocol follow from the two configs."""

import pytest
from reported_study import ROOT, demo_config, merged, paper_config

from haemex.protocol_comparison import compare_protocols, without_paths
from haemex.settings import load_schema


@pytest.fixture(scope="module")
def paper():
    return paper_config()


@pytest.fixture(scope="module")
def demo():
    return demo_config()


def test_deviations_of_the_demo_and_of_the_chosen_candidate(demo, paper):
    schema = load_schema(ROOT / "config/config.schema.yaml")
    rows = {row["key"]: row for row in compare_protocols(demo, paper, schema)}
    assert rows["resample.matrix"]["paper"] == [256, 256, 32] and rows["resample.matrix"]["here"] == [32, 32, 20]
    assert "voxels" in rows["resample.matrix"]["meaning"]
    assert rows["training.epochs"]["here"] == demo["training"]["epochs"]
    assert "rate_3e-4" in rows["candidates"]["paper"] and "rate_3e-4" not in rows["candidates"]["here"]
    assert not {"study", "cohort_table", "seed"} & set(rows) and not any(key.startswith("phantom") for key in rows)
    assert compare_protocols(paper, paper, schema) == []
    # 10 and 10.0 are the same protocol.
    assert compare_protocols(merged(paper, {"augment": {"scaling_percent": 10}}), paper, schema) == []
    faster = merged(paper, {"training": {"threads": 8, "precision": "bf16"}, "evaluate": {"overlays": 2}, "seed": 5})
    faster = merged(
        faster, {"computing": {"memory_gb": 8.0}, "predict": {"ensemble": False}, "seed_study": {"seeds": [1]}}
    )
    assert compare_protocols(faster, paper, schema) == []
    assert [row["key"] for row in compare_protocols(merged(paper, {"folds": 3}), paper, schema)] == ["folds"]


def test_paths_do_not_travel():
    config = {"cohort_table": "x.tsv", "a": {"b": "/home/dr.house/x", "c": r"C:\Users\house", "d": ["rel/x", 3]}}
    assert without_paths(config) == {"a": {"b": "(path left out)", "c": "(path left out)", "d": ["rel/x", 3]}}
