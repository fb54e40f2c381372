rule pretrain:
    input:
        decided_by=decided_by("pretrain"),
        made_from=made_from("pretrain"),
    output:
        patterns("pretrain"),
    log:
        f"logs/{RUN}/pretrain.log",
    benchmark:
        f"benchmarks/{RUN}/pretrain.tsv"
    threads: 1
    resources:
        mem_mb=memory("pretrain"),
        runtime=minutes("pretrain"),
    params:
        run=lambda wildcards: RUN.format(**wildcards),
    shell:
        "exec polygrain pretrain --workflow {params.run} > {log} 2>&1"
