rule features:
    input:
        decided_by=decided_by("features"),
        made_from=made_from("features"),
    output:
        features="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/features.safetensors",
    log:
        "logs/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/features.log",
    benchmark:
        "benchmarks/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/features.tsv"
    threads: 1
    resources:
        mem_mb=memory("features"),
        runtime=minutes("features"),
    shell:
        "exec polygrain features --workflow"
        " runs/{wildcards.scale}/{wildcards.dataset}/{wildcards.method}/{wildcards.variant}/seed{wildcards.seed}"
        " > {log} 2>&1"


rule evaluate:
    input:
        decided_by=decided_by("evaluate"),
        made_from=made_from("evaluate"),
    output:
        knn="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/results/knn.json",
        knn_predictions="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/results/knn.npz",
        linear="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/results/linear.json",
        linear_predictions="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/results/linear.npz",
    log:
        "logs/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/evaluate.log",
    benchmark:
        "benchmarks/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/evaluate.tsv"
    threads: 1
    resources:
        mem_mb=memory("evaluate"),
        runtime=minutes("evaluate"),
    shell:
        "exec polygrain evaluate --workflow"
        " runs/{wildcards.scale}/{wildcards.dataset}/{wildcards.method}/{wildcards.variant}/seed{wildcards.seed}"
        " > {log} 2>&1"
