# The whole workflow: real data -> pre-training -> frozen features -> protocols -> tables.
# snakemake --cores all reports/table1.pdf          the default scale, all seeds
# snakemake --cores all reports/smoke-seeds1/table1.pdf    the same graph in minutes
# snakemake --cores all reports/table2.pdf          the granularity ablation of every method
# snakemake --cores all reports/ledger.pdf          where descriptions and releases differ; trains nothing
from snakemake.utils import min_version

min_version("9.27")


# The Python that the lock is resolved for. Jobs use it only under --software-deployment-method apptainer, with a .venv that was made inside it;
# everywhere else they run in the environment that snakemake itself runs in.
container: "docker://python:3.11-bookworm"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/audit.smk"


rule all:
    default_target: True
    input:
        "reports/table1.pdf",


localrules:
    all,
    table,
    ledger,
    crate,
