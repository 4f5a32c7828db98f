"""Write the report, its tables for a manuscript, the model card and the digests of the inputs."""

from pathlib import Path

from haemex.logs import log_to
from haemex.phantom_cohort import reachable_auc
from haemex.provenance import ROOT
from haemex.report import write_report
from haemex.settings import CONFIG_SCHEMA

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_report(
            config=snakemake.params.config,
            paper_config_path=ROOT / "workflow/report/protocol.yaml",
            schema_path=CONFIG_SCHEMA,
            template_folder=ROOT / "workflow/report",
            flow_path=snakemake.input.flow,
            flips_path=snakemake.input.flips,
            cohort_path=snakemake.input.cohort,
            measure_folder=Path(snakemake.input.measured[0]).parent,
            table1_path=next(iter(snakemake.input.table1), None),
            table1_expansion_path=snakemake.input.table1_expansion,
            evaluate_folder=Path(snakemake.input.evaluated[0]).parent,
            cards_path=snakemake.input.cards[0],
            candidates_path=next(iter(snakemake.input.candidates), None),
            selected_path=next(iter(snakemake.input.selected), None),
            model_path=snakemake.input.model[0],
            reachable_auc=reachable_auc(snakemake.input.truth[0], snakemake.params.testing)
            if snakemake.input.truth
            else None,
            table_digest=snakemake.params.table,
            codes=snakemake.params.codes,
            seeds_path=snakemake.input.seeds or None,
            scanner_study_path=snakemake.input.scanner_study or None,
            out_folder=Path(snakemake.output.report).parent,
        )
