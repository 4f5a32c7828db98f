"""Write the report."""

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
            table1_path=snakemake.input.table1,
            evaluate_folder=Path(snakemake.input.evaluated[0]).parent,
            candidates_path=snakemake.input.candidates,
            selected_path=snakemake.input.selected,
            model_path=snakemake.input.model,
            reachable_auc=reachable_auc(snakemake.input.truth[0], snakemake.params.testing)
            if snakemake.input.truth
            else None,
            seeds_path=snakemake.input.seeds or None,
            report_path=snakemake.output.report,
        )
