# The whole workflow: real data -> pre-training -> frozen features -> protocols -> tables.
# snakemake --cores all reports/table1.pdf          the default scale, all seeds
# snakemake --cores all reports/smoke-seeds1/table1.pdf    the same graph in a minute
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"


rule all:
    default_target: True
    input:
        "reports/table1.pdf",


localrules:
    all,
    table,
