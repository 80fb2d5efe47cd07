# What `wedefense-nb sweep` gives to Snakemake: one job a run. Its values come from sweep.json (`training.sweeps`).
# A job works in the folder that the sweep was started in, so that paths mean what they meant there.
localrules:
    all,


rule all:
    input:
        expand("{run}/result.json", run=config["runs"]),


rule run:
    input:
        "{run}/given.yaml",
    output:
        "{run}/result.json",
    log:
        "{run}/run.log",
    threads: config["threads"]
    resources:
        **config["resources"],
    params:
        here=config["here"],
        recipe=config["recipe"],
        out=lambda wildcards: f"{config['out']}/{wildcards.run}",
    shell:
        "exec > {log:q} 2>&1; given=$PWD/{input:q}; cd {params.here:q};"
        ' wedefense-nb run {params.recipe:q} --file "$given" --out {params.out:q}'
