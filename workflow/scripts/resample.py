"""Bring one scan to the network's grid."""

from haemex.logs import log_to
from haemex.resample import resample_scan

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        resample_scan(
            ct_path=snakemake.input.ct,
            brain_path=snakemake.input.brain,
            haematoma_path=snakemake.input.haematoma,
            ct_out=snakemake.output.ct,
            brain_out=snakemake.output.brain,
            haematoma_out=snakemake.output.haematoma,
            json_out=snakemake.output.json,
            field_of_view_mm=snakemake.params.field_of_view_mm,
            matrix=snakemake.params.matrix,
            spline_order=snakemake.params.spline_order,
            window_hu=snakemake.params.window_hu,
        )
