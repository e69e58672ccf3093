"""Any source → OME-Zarr."""


rule convert:
    """Raw data, labels, baseline or mask of one volume as sharded OME-Zarr 0.5, cropped to its region."""
    input:
        lambda wildcards: RUN.volumes[wildcards.volume].files(wildcards.kind),
    output:
        manifest=results("volumes/{volume}/{kind}.json"),
    log:
        results("volumes/{volume}/logs/{kind}.log"),
    benchmark:
        results("volumes/{volume}/benchmarks/{kind}.tsv")
    wildcard_constraints:
        kind="raw|labels|baseline|mask",
    conda:
        "../envs/kdseg.yaml"
    threads: RUN.workers
    resources:
        mem_mb=8_000,
        runtime="1d",
    params:
        options=options("volumes", "{volume}"),
        storage=options("storage"),
    shell:
        "python -m kdseg convert --kind {wildcards.kind} --manifest {output.manifest}"
        " --options {params.options:q} --storage {params.storage:q}"
        " --workers {threads} > {log} 2>&1"
