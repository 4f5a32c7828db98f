"""haemex: the study of Zhong et al. 2021 on early haematoma expansion, from DICOM folders to the report."""

from snakemake.utils import min_version

from haemex.provenance import code_version, folder_version
from haemex.study import Study, one_sentence

min_version("9.27")


configfile: "config/config.yaml"


with one_sentence():
    study = Study(config)


pathvars:
    results=f"results/{config['study']}",


wildcard_constraints:
    patient="[A-Za-z0-9]+",
    timepoint="baseline|followup",
    candidate="[A-Za-z0-9_.-]+",
    fold=r"\d+",


if "phantom" in config:

    include: "workflow/rules/phantom.smk"


include: "workflow/rules/check.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/skullstrip.smk"
include: "workflow/rules/resample.smk"
include: "workflow/rules/augment.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/final.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "<results>/check/problems.tsv",
        "<results>/report/report.html",
