"""Measure one patient's haematoma."""

from haemex.logs import log_to
from haemex.volume import measure_patient

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        masks = snakemake.params.masks
        measure_patient(
            patient=snakemake.wildcards.patient,
            baseline_mask=masks["baseline_mask"] or None,
            baseline_json=snakemake.input.baseline_json,
            baseline_nifti=snakemake.input.baseline_ct,
            followup_mask=masks["followup_mask"] or None,
            followup_json=next(iter(snakemake.input.followup_json), None),
            followup_volume_ml=snakemake.params.followup_volume_ml,
            rater2_mask=masks["baseline_mask_rater2"] or None,
            json_out=snakemake.output.json,
            mask_out=snakemake.output.haematoma,
        )
