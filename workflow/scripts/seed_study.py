"""Say how far AUC and Dice spread with the seed of the training alone."""

from pathlib import Path

from haemex.logs import log_to
from haemex.seed_study import summarise_seeds

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        summarise_seeds(
            candidate=snakemake.params.candidate,
            seeds=snakemake.params.seeds,
            train_folder=Path(snakemake.input.predictions[0]).parents[2],
            cohort_path=snakemake.input.cohort,
            collapsed_dice=snakemake.params.collapsed_dice,
            confidence=snakemake.params.confidence,
            table_path=snakemake.output.table,
            summary_path=snakemake.output.summary,
            figure_stem=Path(snakemake.output.figures[0]).with_suffix(""),
        )
