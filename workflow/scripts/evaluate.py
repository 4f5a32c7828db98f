"""Refuse leaks, evaluate the locked model on the test cohort, draw the figures."""

from pathlib import Path

from haemex.clinical import clinical_rows
from haemex.evaluation import evaluate_study
from haemex.external_evaluation import evaluate_external
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
        common = folders | {
            "rows": clinical_rows(snakemake.input.table, snakemake.input.cohort),
            "model_folder": Path(snakemake.input.model[0]).parent,
            "resample_folder": Path(snakemake.input.resampled[0]).parent,
            "markers_folder": Path(snakemake.input.markers[0]).parent,
            "out_folder": out_folder,
            **{name: snakemake.params[name] for name in ("confidence", "bat_cut", "expansion", "seed")},
        }
        if snakemake.params.external:
            evaluate_external(**common)
        else:
            evaluate_study(
                out_of_fold_path=snakemake.input.out_of_fold[0],
                selected_path=snakemake.input.selected[0],
                roles_paths=snakemake.input.roles,
                final_roles_path=snakemake.input.final_roles[0],
                operating_point=snakemake.params.operating_point,
                min_sensitivity=snakemake.params.min_sensitivity,
                **common,
            )
        draw_figures(
            flow_path=snakemake.input.flow,
            evaluate_folder=out_folder,
            out_of_fold_path=next(iter(snakemake.input.out_of_fold), None),
            histories=[*snakemake.input.histories, *snakemake.input.final_history],
            overlays=snakemake.params.overlays,
            **folders,
        )
