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
