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
    wildcard_constraints:
        dataset=datasets_of("pixels"),
    threads: 1
    resources:
        mem_mb=memory("prepare"),
        runtime=minutes("prepare"),
    shell:
        "exec polygrain prepare --workflow data/{wildcards.dataset} > {log} 2>&1"


# The same verb for data sets whose images stay encoded.
rule prepare_encoded:
    input:
        decided_by=decided_by("prepare"),
    output:
        shards=directory("data/{dataset}/shards"),
        index="data/{dataset}/index.npz",
        labels="data/{dataset}/labels.npy",
        splits="data/{dataset}/splits.npz",
        manifest="data/{dataset}/manifest.json",
    log:
        "logs/data/{dataset}/prepare.log",
    benchmark:
        "benchmarks/data/{dataset}/prepare.tsv"
    wildcard_constraints:
        dataset=datasets_of("encoded"),
    threads: 1
    resources:
        mem_mb=memory("prepare"),
        runtime=minutes("prepare"),
    shell:
        "exec polygrain prepare --workflow data/{wildcards.dataset} > {log} 2>&1"
