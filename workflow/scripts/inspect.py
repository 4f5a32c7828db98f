"""Draw one patient's scan with its masks and the field of view, and measure what can be checked."""

from haemex.inspection import inspect_patient
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        inspect_patient(
            patient=snakemake.wildcards.patient,
            ct_path=snakemake.input.ct,
            brain_path=snakemake.input.brain,
            haematoma_path=snakemake.input.haematoma,
            baseline_json=snakemake.input.baseline_json,
            followup_json=next(iter(snakemake.input.followup_json), None),
            skullstrip_json=snakemake.input.skullstrip_json,
            measure_json=snakemake.input.measure_json,
            resample_json=snakemake.input.resample_json,
            field_of_view_mm=snakemake.params.field_of_view_mm,
            matrix=snakemake.params.matrix,
            png_out=snakemake.output.png,
            json_out=snakemake.output.json,
        )
