"""The validated configuration and the small functions that the rules share."""

import re
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kdseg.config import questions, tasks, validate
from kdseg.config.cluster import LocalOptions
from kdseg.config.compare import choice, rate_trials, trial_name
from kdseg.config.shipped import model_file
from kdseg.config.teachers import AffinitiesTeacher
from kdseg.errors import ConfigError, KdsegError, MissingError
from kdseg.results.manifests import read
from kdseg.running.earlier import expect_earlier

try:
    RUN = validate(config)
    if workflow.is_main_process:  # jobs go on where the folder is removed meanwhile
        expect_earlier(RUN)
except ConfigError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    model="|".join(map(re.escape, [*RUN.all_models, *RUN.pretrained])),
    volume="|".join(RUN.volumes),
    teacher="|".join(map(re.escape, RUN.teachers)) or "(?!)",
    method="|".join(RUN.compare.method_names if RUN.compare else ()),


def results(path):
    """Return a path below this configuration's folder of results."""
    return f"{RUN.results}/{path}"


def manifests(wildcards, **patterns):
    """Return the paths of manifests by their roles."""
    return {
        role: results(pattern.format(**wildcards)) for role, pattern in patterns.items()
    }


def as_json(task):
    """Return a task as JSON text for the params of a rule.

    Params are functions of it, since Snakemake looks for wildcards in strings. A change of the text reruns the job. It
    is made from wildcards alone, since Snakemake does not compare params that are made from input or output.
    """
    return task.model_dump_json(include=task.model_fields_set)


def volume_inputs(names, labelled):
    """Return the manifests of volumes by their roles."""
    return {
        name: {
            kind: results(f"volumes/{name}/{kind}.json")
            for kind in ("raw", "labels")
            if kind == "raw" or name in labelled
        }
        for name in names
    }


def training_inputs(wildcards):
    """Return the manifests that one model is trained on, by their roles."""
    train = RUN.all_models[wildcards.model].train
    truth = dict.fromkeys((*train.volumes, train.validate_on))
    labelled = [name for name in truth if RUN.volumes[name].labelled]
    names = dict.fromkeys((*truth, *train.active_unlabelled))
    inputs = {"volumes": volume_inputs(names, labelled)}
    if train.teaching.outputs == "stored":
        inputs["stored"] = {
            teacher: {
                volume: {
                    product: results(f"{teacher}/{volume}/{product}.json")
                    for product in (
                        [RUN.teachers[teacher].product]
                        if teacher in RUN.teachers
                        else train.stored_products
                    )
                }
                for volume in RUN.taught_volumes(wildcards.model)
            }
            for teacher in train.teachers
        }
    else:
        inputs["teachers"] = {
            name: results(f"{name}/model.json")
            for name in train.teachers
            if name not in RUN.teachers
        }
    if train.teaching.instances == "segmentation" and train.teachers:
        inputs["instances"] = {
            volume: results(f"{train.teachers[0]}/{volume}/segmentation.json")
            for volume in RUN.unlabelled_of(train)
        }
    return inputs


def foreign_teachers(wildcards):
    """Return the teachers of a model that are no models, by name; of affinities all that counts is among the inputs."""
    return {
        name: RUN.teachers[name]
        for name in RUN.all_models[wildcards.model].train.teachers
        if name in RUN.teachers
        and not isinstance(RUN.teachers[name], AffinitiesTeacher)
    }


def taught_segmentation(wildcards):
    """Return the options of a volume whose labels are the segmentation that teaches."""
    volume = wildcards.volume
    return RUN.teachers[wildcards.teacher].as_labels(volume, RUN.volumes[volume])


def foreign_files(wildcards):
    """Return the paths of the files that networks of others are made of."""
    try:
        return [
            path
            for one in foreign_teachers(wildcards).values()
            for path in one.needed_files
        ]
    except MissingError as error:
        raise WorkflowError(str(error)) from None


def pretrained_file(wildcards):
    """Return the path of the weights of a network that is trained already."""
    try:
        return str(model_file(RUN.pretrained[wildcards.model]))
    except KdsegError as error:
        raise WorkflowError(str(error)) from None


def start_file(wildcards):
    """Return the path of the weights that a training starts from, if it does."""
    start = RUN.all_models[wildcards.model].train.start_from
    try:
        return [] if start is None else str(model_file(start))
    except KdsegError as error:
        raise WorkflowError(str(error)) from None


def leaves(inputs):
    """Return the paths of nested dicts as a list."""
    if isinstance(inputs, dict):
        return [path for part in inputs.values() for path in leaves(part)]
    return [inputs]


def mask_input(wildcards):
    """Return the mask of a volume, if it has one."""
    if RUN.volumes[wildcards.volume].mask is None:
        return {}
    return {"mask": results(f"volumes/{wildcards.volume}/mask.json")}


def predicted_mask(wildcards):
    """Return the mask of a volume to predict, unless students learn from its affinities: they would learn its zeros."""
    taught = (
        name
        for student, model in RUN.all_models.items()
        if wildcards.model in model.train.teachers
        and "affinities" in model.train.stored_products
        for name in RUN.taught_volumes(student)
    )
    return {} if wildcards.volume in taught else mask_input(wildcards)


def affinity_source(wildcards):
    """Return what fragments are made of: stored affinities, or raw data and the network that computes them."""
    if not RUN.predict.fused:
        return stored_affinities(wildcards)
    return {
        "raw": results(f"volumes/{wildcards.volume}/raw.json"),
        "model": results(f"{wildcards.model}/model.json"),
    }


def stored_affinities(wildcards):
    """Return the affinities of a volume, unless fragments are made without storing them."""
    if RUN.predict.fused:
        return {}
    path = results(f"{wildcards.model}/{wildcards.volume}/affinities.json")
    return {"affinities": path}


def threshold_inputs(wildcards):
    """Return the sweep, or the network, that a model's threshold is chosen from, unless the threshold is fixed."""
    if RUN.segment.threshold is not None or RUN.tuned_options != "none":
        return {}
    if RUN.evaluate.tune_on is None:
        return {"model": results(f"{wildcards.model}/model.json")}
    return {"sweep": results(f"{wildcards.model}/{RUN.evaluate.tune_on}/sweep.json")}


def tuned_options(wildcards):
    """Return the search whose options segmentations of a model are made with, if there is one."""
    own = f"{wildcards.model}/tuned.json"
    where = {"none": None, "own": own, "shared": "tuned.json"}[RUN.tuned_options]
    return {} if where is None else {"tuned": results(where)}


def tune_part(wildcards):
    """Return whether a sweep chooses on a part of its volume: on `tune_roi` of `tune_on`, if it is set."""
    return (
        wildcards.volume == RUN.evaluate.tune_on and RUN.evaluate.tune_roi is not None
    )


def evaluated(wildcards):
    """Return the manifests of the scores of all models, and of segmentations where nobody knows the truth."""
    return [
        results(
            f"{model}/{volume}/{'scores' if options.labelled else 'segmentation'}.json"
        )
        for volume, options in RUN.volumes.items()
        if volume in RUN.evaluate.volumes
        for model in RUN.evaluate.models
    ]


def trial_inputs(wildcards):
    """Return the manifests of the volumes that a trial is scored on, by their roles."""
    names = dict.fromkeys((RUN.trial.tune_on, *RUN.trial.volumes))
    return {"volumes": volume_inputs(names, names)}


def rate_inputs(wildcards):
    """Return the manifests of the trials that a method's learning rate is chosen from, by rate."""
    return {
        rate: [results(f"{name}/trial.json") for name in names]
        for rate, names in rate_trials(RUN.compare, wildcards.method).items()
    }


def comparison():
    """Return the section `compare`."""
    try:
        return RUN.expect_compare()
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def choices(wildcards):
    """Return the manifests of the methods' learning rates, none where all have the student's."""
    names = comparison().method_names if comparison().learning_rates else ()
    return [results(choice(method)) for method in names]


def compared(wildcards):
    """Return the manifests of all trials, and of the teachers, which are scored in the same way."""
    names = [*RUN.compared_teachers]
    for method in comparison().method_names:
        rate = None
        if comparison().learning_rates:
            chosen = checkpoints.choose.get(method=method).output.manifest
            rate = read(Path(chosen)).stats["learning_rate"]
        names += [trial_name(method, seed, rate) for seed in comparison().seeds]
    return [results(f"{name}/trial.json") for name in names]


def search():
    """Return the section `tune_segmentation`."""
    try:
        return RUN.expect_tune_segmentation()
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def tuned_volume(model, volume):
    """Return the manifests of one volume that post-processing is tuned on, by their roles."""
    mask = {"mask": results(f"volumes/{volume}/mask.json")}
    return {
        "affinities": results(f"{model}/{volume}/affinities.json"),
        "labels": results(f"volumes/{volume}/labels.json"),
        **(mask if RUN.volumes[volume].mask else {}),
    }


def tuned_volumes(wildcards):
    """Return the manifests that a model's post-processing is tuned on, by their roles."""
    names = dict.fromkeys(region.volume for region in search().regions)
    return {"volumes": {name: tuned_volume(wildcards.model, name) for name in names}}


def shared_search():
    """Return volumes and options of the search for what suits all scored models, to which each region is one of each."""
    pairs = [
        (model, region) for model in RUN.evaluate.models for region in search().regions
    ]
    regions = [
        region.model_copy(update={"volume": f"{model}/{region.volume}"})
        for model, region in pairs
    ]
    return {
        "volumes": {
            f"{model}/{region.volume}": tuned_volume(model, region.volume)
            for model, region in pairs
        },
        "options": search().model_copy(update={"regions": tuple(regions)}),
    }


def tuned(wildcards):
    """Return the manifests of what suits each scored model best, or all of them."""
    if search().apply == "shared":
        return [results("tuned.json")]
    return [results(f"{model}/tuned.json") for model in RUN.evaluate.models]


LOCAL = RUN.cluster.kind == "local"
CPU_LOCAL = RUN.cpu_cluster.kind == "local"
GPUS = RUN.gpus if RUN.device.startswith("cuda") else 0
# Predictions on a cluster of their own use its GPUs and cores, not those of their job.
PREDICT_GPUS, PREDICT_CORES = (GPUS, RUN.workers) if LOCAL else (0, 1)
CPU_CORES = RUN.workers if CPU_LOCAL else 1
STORED = RUN.predict.model_copy(update={"fused": False})
COMPUTED = (
    {"predict": RUN.predict, "device": RUN.device, "gpus": RUN.gpus}
    if RUN.predict.fused
    else {}
)


# Likewise only where it is so.
SECTIONS = {"sections": True} if RUN.sections else {}
# Without the names of all that is scored: another model or volume makes no score run again.
SCORING = RUN.evaluate.model_copy(update={"models": (), "volumes": ()})


def flag(name, value):
    """Return a flag for a shell command, with braces escaped, since they stand for wildcards; empty without a value."""
    said = f" {name} {shlex.quote(value)}" if value else ""
    return said.replace("{", "{{").replace("}", "}}")


def earlier(wildcards, output):
    """Return the manifest of an earlier run in which a stage may find blocks of its result; empty if there is none.

    As it is made from output, Snakemake does not compare it, so that a change reruns nothing.
    """
    if RUN.reuse is None:
        return ""
    inside = Path(output.manifest).relative_to(RUN.results)
    return flag("--reuse", f"{RUN.reuse}/{inside}")


# Flags that change how a stage runs, not what it computes: they are no params, so that a change reruns nothing.
OVERWRITE = " --overwrite" if RUN.overwrite else ""
CLUSTER, CPU_CLUSTER = (
    flag("--cluster", None if one == LocalOptions() else one.model_dump_json())
    for one in (RUN.cluster, RUN.cpu_cluster)
)
REMOTE = flag("--storage.remote", RUN.storage.remote)
