rule prepare:
    input:
        decided_by=decided_by("prepare"),
    output:
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        splits="data/{dataset}/splits.npz",
        manifest="data/{dataset}/manifest.json",
    log:
        "logs/data/{dataset}/prepare.log",
    benchmark:
        "benchmarks/data/{dataset}/prepare.tsv"
    threads: 1
    resources:
        mem_mb=memory("prepare"),
        runtime=minutes("prepare"),
    shell:
        "exec polygrain prepare --workflow data/{wildcards.dataset} > {log} 2>&1"
