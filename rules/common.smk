"""The validated configuration and the small functions that the rules share."""

import re
import shlex
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kdseg.config import questions, tasks, validate
from kdseg.config.cluster import LocalOptions
from kdseg.config.compare import choice, rate_trials, trial_name
from kdseg.config.reading import read_values
from kdseg.config.shipped import FOLDER as SHIPPED
from kdseg.config.shipped import model_file
from kdseg.config.teachers import AffinitiesTeacher
from kdseg.errors import ConfigError, KdsegError, MissingError
from kdseg.results.manifests import read, source_fingerprint
from kdseg.running.earlier import expect_earlier

try:
    for path in workflow.configfiles:
        read_values(Path(path))  # Snakemake takes the last of keys that are given twice
    RUN = validate(config)
    if workflow.is_main_process:  # jobs go on where the folder is removed meanwhile
        expect_earlier(RUN)
except KdsegError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    model="|".join(map(re.escape, [*RUN.all_models, *RUN.pretrained])),
    volume="|".join(RUN.volumes),
    teacher="|".join(map(re.escape, RUN.teachers)) or "(?!)",
    method="|".join(RUN.compare.method_names if RUN.compare else ()),


def results(path):
    """Return a path below this configuration's folder of results."""
    return path if RUN.results == "." else f"{RUN.results}/{path}"


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


def training_files(wildcards):
    """Return the paths of weights that a training starts from, and of files that networks of others are made of."""
    start = RUN.all_models[wildcards.model].train.start_from
    try:
        begun = [] if start is None else [str(model_file(start))]
        networks = foreign_teachers(wildcards).values()
        return begun + [path for one in networks for path in one.needed_files]
    except KdsegError as error:
        raise WorkflowError(str(error)) from None


def pretrained_files(wildcards):
    """Return the path of the weights of a network that is trained already."""
    try:
        return [str(model_file(RUN.pretrained[wildcards.model]))]
    except KdsegError as error:
        raise WorkflowError(str(error)) from None


def converted_files(wildcards):
    """Return the paths that a dataset of a volume is made from."""
    return RUN.volumes[wildcards.volume].files(wildcards.kind)


def adopted_files(wildcards):
    """Return the paths that a teacher's affinities of a volume lie in."""
    return RUN.teachers[wildcards.teacher].files(wildcards.volume)


def taught_files(wildcards):
    """Return the paths that a segmentation that teaches is made from."""
    return taught_segmentation(wildcards).files("labels")


def edited_files(wildcards):
    """Return the path of a user's merges and splits, if there are any."""
    return [RUN.agglomerate.edits] if RUN.agglomerate.edits else []


def named(files):
    """Return an input function of a user's files, but of those in whose names Snakemake would see wildcards."""

    def paths(wildcards):
        found = files(wildcards)
        odd = [path for path in found if "{" in path]
        if missing := [path for path in odd if not Path(path).exists()]:
            raise WorkflowError(f"nothing at {missing[0]}")
        return [path for path in found if path not in odd]

    return paths


def states(files):
    """Return a function of the fingerprints of a user's files, for params: time says nothing of what is in a folder."""
    return lambda wildcards: [state(path) for path in files(wildcards)]


@cache
def state(path):
    """Return the fingerprint of a user's file or folder; empty where there is none, which Snakemake says.

    Of a result of this run, it is not known before that is made, and its time is enough.
    """
    own = path.endswith(".json") and Path(path).resolve().is_relative_to(
        Path(RUN.results).resolve()
    )
    shipped = Path(path).parent == SHIPPED
    try:
        return "" if own or shipped else source_fingerprint(Path(path))
    except MissingError:
        return ""
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
    ] + [
        results(f"baseline/{volume}/scores.json")
        for volume in RUN.evaluate.volumes
        if RUN.volumes[volume].baseline and RUN.volumes[volume].labelled
    ]


def made_of(files):
    """Return an input function of files, which another one gives, and of all manifests that they are made of.

    For a target: a manifest that is missing between others, as after `kdseg clear` or where a stage was refused, is
    made again only if it is asked for itself.
    """

    def paths(wildcards):
        found, left = {}, list(files(wildcards))
        while left:
            path = left.pop()
            if path in found:
                continue
            makers = [one for one in workflow.rules if one.is_producer(path)]
            for maker in makers:
                inputs, *_ = maker.expand_input(maker.get_wildcards(path))
                left += map(str, inputs)
            if makers:  # else it is a file of a user
                found[path] = None
        return list(found)

    return paths


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
