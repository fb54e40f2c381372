# The record of a build for others: an RO-Crate of every job behind table 1. Nothing depends on it, and it is no claim.
rule crate:
    input:
        "{folder}/table1.pdf",
    output:
        "{folder}/ro-crate-metadata.json",
    log:
        "logs/{folder}/crate.log",
    benchmark:
        "benchmarks/{folder}/crate.tsv"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    shell:
        "exec polygrain crate {input} > {log} 2>&1"
