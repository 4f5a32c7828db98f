"""Compare the network on patients of a scanner it never saw with itself where it had seen that scanner."""

from pathlib import Path

from haemex.logs import log_to
from haemex.scanner_study import compare_scanners

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        compare_scanners(
            candidate=snakemake.params.candidate,
            scanners=snakemake.params.scanners,
            unseen_folder=Path(snakemake.input.unseen[0]).parents[1],
            train_folder=Path(snakemake.input.out_of_fold[0]).parents[2],
            convert_folder=Path(snakemake.input.conversions[0]).parent,
            cohort_path=snakemake.input.cohort,
            collapsed_dice=snakemake.params.collapsed_dice,
            confidence=snakemake.params.confidence,
            table_path=snakemake.output.table,
            summary_path=snakemake.output.summary,
            figure_stem=Path(snakemake.output.figures[0]).with_suffix(""),
        )
