# Where description, release and rebuild differ: params/ledger, one line for each switch. Reads no run.
rule ledger:
    input:
        decided_by=lambda wildcards: written(stage_at("table", "reports/ledger.pdf")),
    output:
        pdf=report(
            "reports/ledger.pdf", caption="../report/ledger.rst", category="Tables"
        ),
        csv="reports/ledger.csv",
        markdown="reports/ledger.md",
        latex="reports/ledger.tex",
    log:
        "logs/reports/ledger.log",
    benchmark:
        "benchmarks/reports/ledger.tsv"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    shell:
        "exec polygrain table --workflow {output.pdf} > {log} 2>&1"


ruleorder: ledger > table


rule table:
    input:
        decided_by=decided_by("table"),
        made_from=made_from("table"),
    output:
        pdf=report(
            "{folder}/{table}.pdf", caption="../report/table.rst", category="Tables"
        ),
        csv="{folder}/{table}.csv",
        markdown="{folder}/{table}.md",
        latex="{folder}/{table}.tex",
    log:
        "logs/{folder}/{table}.log",
    benchmark:
        "benchmarks/{folder}/{table}.tsv"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    shell:
        "exec polygrain table --workflow {output.pdf} > {log} 2>&1"
