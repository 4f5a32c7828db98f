"""Refuse leaks, evaluate the locked model on the test cohort, draw the figures."""

from pathlib import Path

from haemex.clinical import clinical_rows
from haemex.evaluation import evaluate_study
from haemex.figures import draw_figures
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        out_folder = Path(snakemake.output.summary).parent
        folders = {
            "predict_folder": Path(snakemake.input.predictions).parent,
            "measure_folder": Path(snakemake.input.measured[0]).parent,
            "convert_folder": Path(snakemake.input.converted[0]).parent,
        }
        evaluate_study(
            clinical_rows(snakemake.input.table, snakemake.input.cohort),
            out_of_fold_path=snakemake.input.out_of_fold,
            selected_path=snakemake.input.selected,
            model_path=snakemake.input.model,
            roles_paths=snakemake.input.roles,
            final_roles_path=snakemake.input.final_roles,
            resample_folder=Path(snakemake.input.resampled[0]).parent,
            markers_folder=Path(snakemake.input.markers[0]).parent,
            out_folder=out_folder,
            confidence=snakemake.params.confidence,
            bat_cut=snakemake.params.bat_cut,
            operating_point=snakemake.params.operating_point,
            min_sensitivity=snakemake.params.min_sensitivity,
            expansion=snakemake.params.expansion,
            seed=snakemake.params.seed,
            **folders,
        )
        draw_figures(
            flow_path=snakemake.input.flow,
            evaluate_folder=out_folder,
            out_of_fold_path=snakemake.input.out_of_fold,
            histories=[*snakemake.input.histories, snakemake.input.final_history],
            overlays=snakemake.params.overlays,
            **folders,
        )
