rule pretrain:
    input:
        decided_by=decided_by("pretrain"),
        made_from=made_from("pretrain"),
    output:
        checkpoint="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/checkpoint.safetensors",
        metrics="runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/metrics.jsonl",
    log:
        "logs/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/pretrain.log",
    benchmark:
        "benchmarks/runs/{scale}/{dataset}/{method}/{variant}/seed{seed}/pretrain.tsv"
    threads: 1
    resources:
        mem_mb=memory("pretrain"),
        runtime=minutes("pretrain"),
    shell:
        "exec polygrain pretrain --workflow"
        " runs/{wildcards.scale}/{wildcards.dataset}/{wildcards.method}/{wildcards.variant}/seed{wildcards.seed}"
        " > {log} 2>&1"
