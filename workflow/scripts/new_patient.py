"""Predict one new patient with a finished model."""

from haemex.logs import log_to
from haemex.new_patient import predict_new_patient

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        row = snakemake.params.row
        predict_new_patient(
            row["ct"],
            snakemake.params.model,
            snakemake.output.folder,
            patient=snakemake.wildcards.patient,
            onset_to_ct_h=row["onset_to_ct_h"],
            series=row["series"],
            ensemble=snakemake.params.ensemble,
            precision=snakemake.params.precision,
        )
