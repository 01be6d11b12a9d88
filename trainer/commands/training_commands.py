"""The commands about the folder of a training: `new`, `extend` and `report`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.commands.explain_settings import settings_as_toml
from trainer.commands.terminal import not_prepared, quieten_libraries, refuse
from trainer.errors import TrainerError
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.event_file import EVENTS_FILE, read_all_events
from trainer.exchange.job_dir import SPEC_FILE, read_spec, write_spec
from trainer.exchange.memory_predictions import is_predictable, keep_prediction, read_prediction
from trainer.protocol.advice import doubtful_settings, idle_settings
from trainer.protocol.presets import presets, spec_from_preset
from trainer.protocol.setting_problems import SHORT_NAMES, by_dotted_names, nested, parse_toml, parse_value
from trainer.protocol.settings import MethodKind
from trainer.protocol.spec import Spec, SpecError, changed_settings, extended, make_spec, merge
from trainer.protocol.text import _, size
from trainer.protocol.training_settings import Precision

log = logging.getLogger(__name__)


def add_new(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `new`."""
    parser.add_argument("--dataset", type=Path, metavar="DATASET_DIR", help="default with --from: that of the job")
    parser.add_argument("--base", help="folder, .safetensors file, hub name, or tiny (default: the preset's)")
    parser.add_argument("--preset", help=f"one of: {', '.join(presets())} (default: lora)")
    parser.add_argument(
        "--from",
        type=Path,
        metavar="JOB_DIR",
        dest="source",
        help="start with the settings and the best weights of a finished job, instead of --preset and --base",
    )
    parser.add_argument("--name", help="name of the LoRA (default: lora, or that of the job)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="a .toml file with settings; see --explain")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting; see --explain")
    parser.add_argument(
        "--mix",
        action="append",
        default=[],
        type=parse_mix_part,
        metavar="DATASET_DIR:NAME=VALUE",
        help="another dataset, with :repeats=N or :weight=SHARE, :trigger=WORD, or :role=regularization",
    )
    parser.add_argument("--out", type=Path, metavar="JOB_DIR", help="the folder of the new job")
    parser.add_argument(
        "--explain", action="store_true", help="print every setting with its meaning, default and range, as TOML"
    )
    parser.set_defaults(command=run_new)


def run_new(arguments: argparse.Namespace) -> int:
    """Write `spec.json` and print its path; or explain the settings."""
    if arguments.explain:
        sys.stdout.write(settings_as_toml())
        return 0
    return _make_job(arguments)


def _make_job(arguments: argparse.Namespace) -> int:
    if arguments.out is None:
        return refuse(_("Name a folder for the job: --out JOB_DIR."))
    mix = [{**part, "dataset": str(Path(part["dataset"]).resolve())} for part in arguments.mix]
    given = [arguments.dataset] if arguments.dataset is not None else []
    for folder in (*given, *(Path(part["dataset"]) for part in mix)):
        try:
            read_report(folder)
        except (OSError, ValueError):
            return refuse(not_prepared(folder))
    changes = _changes(arguments, mix)
    spec = _spec_from_arguments(arguments, changes)
    if "epochs" not in changes.get("training", {}):
        spec = _with_epochs_for_steps(spec)
    check_startable(spec)
    if (arguments.out / EVENTS_FILE).exists():
        return refuse(_("{folder} holds a job that has already started. Choose another folder.", folder=arguments.out))
    if spec.method.start_from:
        spec = _start_from_path(spec, changes.get("method", {}), arguments.out)
    if arguments.source is not None:
        spec = _start_from(arguments.source, spec, arguments.out)
    sys.stdout.write(f"{write_spec(arguments.out, spec)}\n")
    # Not among what a script reads.
    for sentence in (*idle_settings(spec), *doubtful_settings(spec)):
        sys.stderr.write(f"{sentence}\n")
    _print_memory(spec)
    return 0


def _print_memory(spec: Spec) -> None:
    """Tell how much memory a new job needs, where that matters; not among what a script reads."""
    if (memory := predicted_memory(spec, Path(spec.dataset) / "cache")) is not None:
        message = _("This training needs about {memory} of memory.", memory=size(memory))
        sys.stderr.write(f"{message}\n")


def predicted_memory(spec: Spec, folder: Path) -> int | None:
    """Return the memory that a training needs, kept in `folder`; None if it is small, or cannot be predicted."""
    if not is_predictable(spec):
        return None
    if (known := read_prediction(folder, spec)) is not None:
        return known
    quieten_libraries()
    from trainer.training.batch_size_finder import predict_job

    try:
        memory = predict_job(spec)
    except (TrainerError, RuntimeError, NotImplementedError):
        log.warning("the memory of a training on %s cannot be predicted", spec.base.source, exc_info=True)
        return None
    keep_prediction(folder, spec, memory)
    return memory


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `memory`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to keep it (default: that of the dataset)")
    parser.set_defaults(command=run_memory)


def run_memory(arguments: argparse.Namespace) -> int:
    """Print how much memory a training needs, in bytes, without training; it takes half a minute."""
    spec = read_spec(arguments.job_dir)
    memory = predicted_memory(spec, arguments.keep or Path(spec.dataset) / "cache")
    if memory is None:
        return refuse(_("The memory of this training is not known: its base is the toy model, or not on this machine."))
    sys.stdout.write(f"{memory}\n")
    return 0


def _changes(arguments: argparse.Namespace, mix: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of the file and of the command line, which counts more.

    Raises:
        SpecError: The file cannot be read, or an assignment has no value.
    """
    read = _read_settings(arguments.settings) if arguments.settings else {}
    for name in ("preset", "base", "name"):
        if isinstance(read.get(name), str):
            value = read.pop(name)
            setattr(arguments, name, getattr(arguments, name) or value)
    return merge(read, _parse_settings(arguments.set), {"mix": mix} if mix else {})


def _spec_from_arguments(arguments: argparse.Namespace, changes: dict[str, Any]) -> Spec:
    """Make the spec of `new`, from a preset or from a finished job.

    Raises:
        SpecError: A setting does not exist or is out of its range, or the arguments contradict each other.
        CheckpointError: There is nothing to start from.
    """
    dataset = None if arguments.dataset is None else str(arguments.dataset.resolve())
    if arguments.source is not None:
        if arguments.preset or arguments.base:
            raise SpecError(_("--from takes the base and the settings of the job; leave out --preset and --base."))
        return _spec_from_job(arguments.source, dataset=dataset, name=arguments.name, changes=changes)
    if dataset is None:
        raise SpecError(_("Say what to train on: --dataset DATASET_DIR, or --from JOB_DIR for that of a finished job."))
    return spec_from_preset(
        arguments.preset or "lora",
        dataset=dataset,
        base=arguments.base,
        name=arguments.name or "lora",
        changes=changes,
    )


def _spec_from_job(source: Path, *, dataset: str | None, name: str | None, changes: dict[str, Any]) -> Spec:
    """Make the spec of a job that continues a finished one with other data or settings."""
    from trainer.training.checkpoints import finished_state

    before = finished_state(source).spec
    given = {key: value for key, value in (("dataset", dataset), ("name", name)) if value is not None}
    spec = make_spec(merge(before, {"method": {"start_from": "", "start_sha256": None}}, changes, given))
    if spec.method.start_from:
        raise SpecError(_("--from starts from the weights of the job; leave out method.start_from."))
    if different := changed_settings(_fitting(before), _fitting(spec.model_dump(mode="json"))):
        raise SpecError(
            _(
                "The weights of {job} fit its own base and method only; this cannot change: {changes}.",
                job=source,
                changes="; ".join(different),
            )
        )
    return spec


#: Settings of the method that may differ from those of the job that a new one starts from.
_START_SETTINGS = {"dropout", "start_from", "start_sha256"}


def _fitting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that trained weights fit: those of the base and the method, and a new word itself."""
    method = {name: value for name, value in settings["method"].items() if name not in _START_SETTINGS}
    word = settings["training"]["trigger"] if method["kind"] == MethodKind.TEXTUAL_INVERSION else ""
    return {"base": settings["base"], "method": method, "training": {"trigger": word}}


def _start_from(source: Path, spec: Spec, job_dir: Path) -> Spec:
    """Copy the best weights of a finished job into a new job folder; return the spec that names them."""
    from trainer.training.checkpoints import Checkpoints, finished_state, save_start

    checkpoints = Checkpoints(source)
    weights = checkpoints.load_evaluated(checkpoints.path(finished_state(source).best_step))
    method = spec.method.model_copy(update={"start_sha256": save_start(weights, job_dir)})
    return spec.model_copy(update={"method": method})


def _start_from_path(spec: Spec, given: Mapping[str, Any], job_dir: Path) -> Spec:
    """Copy the weights of `method.start_from` into a new job folder; return the spec with their SHA-256, and with the
    rank of a file unless it is `given`.

    Raises:
        SpecError: The file is of another kind or rank.
        CheckpointError: There is nothing to start from.
    """
    from trainer.models.methods.starting_files import kind_of, ranks_of, read_start
    from trainer.training.checkpoints import save_start

    path = Path(spec.method.start_from).expanduser().resolve()
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"start_from": str(path)})})
    if (path / SPEC_FILE).is_file():
        return _start_from(path, spec, job_dir)
    tensors, method = read_start(path), spec.method
    kind = kind_of(tensors)
    if kind is not None and kind is not method.kind:
        raise SpecError(_("{path} is a {kind}; set method.kind to {kind}.", path=path, kind=kind))
    ranks, has_own = ranks_of(tensors), bool(method.conv_rank or method.block_ranks)
    if len(ranks) == 1 and not has_own and ranks != {method.rank}:
        (rank,) = ranks
        if "rank" in given:
            raise SpecError(_("{path} has rank {rank}; set method.rank to {rank}.", path=path, rank=rank))
        method = method.model_copy(update={"rank": rank})
    return spec.model_copy(update={"method": method.model_copy(update={"start_sha256": save_start(tensors, job_dir)})})


def _with_epochs_for_steps(spec: Spec) -> Spec:
    if spec.training.max_steps is None:
        return spec
    from trainer.dataset.split.mixing import read_mixture
    from trainer.training.stages import with_epochs_for_steps

    return with_epochs_for_steps(spec, read_mixture(spec))


def check_startable(spec: Spec) -> None:
    """Check what a run would refuse before it loads a model.

    Raises:
        DatasetError: There is nothing to validate with.
        BadSpecError: This machine lacks the precision, or a warm-up is longer than its stage.
    """
    from trainer.dataset.split.mixing import read_mixture

    mixture = read_mixture(spec)
    if spec.training.precision is Precision.FP16:
        from trainer.device import choose_precision

        choose_precision(spec.training.precision)
    # How many class images there are is known once they are drawn.
    if any(stage.warmup_steps for stage in spec.plan) and not spec.prior.is_on:
        from trainer.training.stages import check_warmups

        check_warmups(spec, mixture)


def add_extend(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `extend`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="how many more epochs")
    parser.set_defaults(command=run_extend)


def run_extend(arguments: argparse.Namespace) -> int:
    """Give a finished job more epochs, as a stage of their own; `run` then goes on from its last checkpoint."""
    from trainer.reporter import Reporter

    if not arguments.job_dir.is_dir():
        return refuse(_("There is no job folder {folder}.", folder=arguments.job_dir))
    # No trainer may run it meanwhile.
    with Reporter(arguments.job_dir):
        spec = extend_job(arguments.job_dir, arguments.epochs)
    message = _(
        "It has {n} epochs now. Continue with `python -m trainer run {job}`.",
        n=spec.training.epochs,
        job=arguments.job_dir,
    )
    sys.stdout.write(f"{message}\n")
    return 0


def extend_job(job_dir: Path, epochs: int) -> Spec:
    """Add epochs to a finished job: write its new spec, with which a run goes on from the last checkpoint.

    Raises:
        SpecError: `spec.json` holds neither the settings that were trained with nor an extension of them.
        CheckpointError: The job is not finished, or cannot be read.
    """
    from trainer.training.checkpoints import continued, finished_state

    state, found = finished_state(job_dir), read_spec(job_dir)
    before = continued(state, found).spec
    if changes := changed_settings(before, found.model_dump(mode="json")):
        raise SpecError(
            _("spec.json was changed after the training; change it back first: {changes}.", changes="; ".join(changes))
        )
    spec = extended(make_spec(state.spec), trained=state.curve[-1].epoch, epochs=epochs)
    write_spec(job_dir, spec)
    return spec


def parse_mix_part(text: str) -> dict[str, str]:
    """Parse the settings of a `MixPart`, such as `/data/cats:repeats=3:role=regularization`.

    Names and values are validated with the spec.
    """
    *folder, last = text.split(":")
    settings: dict[str, str] = {}
    while folder and "=" in last and "/" not in last.partition("=")[0]:
        name, _equals, value = last.partition("=")
        settings[name.strip()] = value.strip()
        *folder, last = folder
    return {"dataset": ":".join([*folder, last]), **settings}


def _parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `["training.epochs=4", "samples.prompts=[\\"a\\"]"]` into nested settings.

    Values are TOML; a bare word is a string.

    Raises:
        SpecError: An assignment has no `=` or no group.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        dotted = SHORT_NAMES.get(name.strip(), name.strip())
        if not equals or not all(dotted.partition(".")[1:]):
            examples = "lr=1e-4, method.targets=all"
            raise SpecError(
                _("--set {text} is not NAME=VALUE, such as {examples}.", text=assignment, examples=examples)
            )
        values[dotted] = parse_value(text)
    return nested(values)


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a `.toml` file.

    Raises:
        SpecError: It cannot be read, or is not TOML.
    """
    try:
        values = by_dotted_names(parse_toml(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError) as error:
        raise SpecError(_("{path} is not a .toml file that can be read: {error}", path=path, error=error)) from error
    return nested(values)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    parser.set_defaults(command=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Write `report.html` of a job, also of one that is running or has failed; print its path."""
    from trainer.report.run_page import write_run_page

    spec = read_spec(arguments.job_dir)
    try:
        events = read_all_events(arguments.job_dir)
    except ValueError:
        return refuse(_("{path} has another version or is damaged.", path=arguments.job_dir / EVENTS_FILE))
    sys.stdout.write(f"{write_run_page(arguments.job_dir, spec, events)}\n")
    return 0
