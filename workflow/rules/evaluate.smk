rule features:
    input:
        decided_by=decided_by("features"),
        made_from=made_from("features"),
    output:
        patterns("features"),
    log:
        f"logs/{RUN}/features.log",
    benchmark:
        f"benchmarks/{RUN}/features.tsv"
    threads: 1
    resources:
        mem_mb=memory("features"),
        runtime=minutes("features"),
    params:
        run=lambda wildcards: RUN.format(**wildcards),
    shell:
        "exec polygrain features --workflow {params.run} > {log} 2>&1"


# One protocol of params/evaluate on one checkpoint.
rule evaluate:
    input:
        decided_by=decided_by("evaluate"),
        made_from=made_from("evaluate"),
    output:
        patterns("evaluate"),
    log:
        f"logs/{RUN}/{{protocol}}.log",
    benchmark:
        f"benchmarks/{RUN}/{{protocol}}.tsv"
    threads: 1
    resources:
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    params:
        run=lambda wildcards: RUN.format(**wildcards),
    shell:
        "exec polygrain evaluate --workflow {params.run}/results/{wildcards.protocol} > {log} 2>&1"
