rule prepare:
    input:
        decided_by=decided_by("prepare"),
    output:
        patterns("prepare", "pixels"),
    log:
        "logs/data/{dataset}/prepare.log",
    benchmark:
        "benchmarks/data/{dataset}/prepare.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, datasets_in(PROJECT, "pixels"))),
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
        patterns("prepare", "encoded"),
        shards=directory("data/{dataset}/shards"),
    log:
        "logs/data/{dataset}/prepare.log",
    benchmark:
        "benchmarks/data/{dataset}/prepare.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, datasets_in(PROJECT, "encoded"))),
    threads: 1
    resources:
        mem_mb=memory("prepare"),
        runtime=minutes("prepare"),
    shell:
        "exec polygrain prepare --workflow data/{wildcards.dataset} > {log} 2>&1"


# Scenes with exact annotations, made of packed data sets.
rule compose:
    input:
        decided_by=decided_by("compose"),
        made_from=made_from("compose"),
    output:
        patterns("compose"),
    log:
        "logs/data/{dataset}/compose.log",
    benchmark:
        "benchmarks/data/{dataset}/compose.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, scenes_in(PROJECT))),
    threads: 1
    resources:
        mem_mb=memory("compose"),
        runtime=minutes("compose"),
    shell:
        "exec polygrain compose --workflow data/{wildcards.dataset} > {log} 2>&1"
