"""Metadata of exported files: `ss_*` as kohya-ss/sd-scripts writes it, `modelspec.*` as Stability AI defines it.

A1111 shows `ss_output_name`, `ss_base_model_version`, `ss_tag_frequency`, `ss_bucket_info` and others; without
`ss_base_model_version` it assumes SD 1. Keys that do not apply here are omitted.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from trainer.dataset.split.mixing import EpochExposure, epoch_exposure
from trainer.protocol.report import Split
from trainer.protocol.settings import MixRole
from trainer.training.session import Session


def file_metadata(session: Session, *, epoch: int, step: int, sample: Path) -> dict[str, Any]:
    """Return the metadata of the files of an epoch; nested values become JSON in the file.

    The method adds its own keys (`ss_network_*`) when it writes a file.

    Args:
        session: The run.
        epoch: Whose weights are in the file.
        step: The last one of that epoch.
        sample: An image that these weights drew, for the thumbnail; it need not exist.
    """
    run = {**_run(session), "ss_epoch": epoch, "ss_steps": step}
    return {**run, **_data(session), **_modelspec(session, sample), **session.task.describe(), "format": "pt"}


def _run(session: Session) -> dict[str, Any]:
    training, objective, stage = session.spec.training, session.spec.objective, session.stages[0]
    micro_batch = session.micro_batch_size
    started = session.reporter.history[0].time
    text_encoder_rate = training.text_encoder_learning_rate or training.learning_rate / 2
    return {
        "ss_session_id": str(int(started * 1000) % 2**32),
        "ss_training_started_at": started,
        "ss_training_finished_at": datetime.now(UTC).timestamp(),
        "ss_output_name": session.spec.name,
        "ss_learning_rate": training.learning_rate,
        "ss_unet_lr": training.learning_rate,
        "ss_text_encoder_lr": text_encoder_rate if session.spec.method.text_encoder else None,
        "ss_num_batches_per_epoch": session.steps_per_epoch(stage),
        "ss_num_epochs": session.epochs,
        "ss_max_train_steps": session.total_steps,
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_gradient_accumulation_steps": ceil(training.batch_size / micro_batch),
        "ss_batch_size_per_device": micro_batch,
        "ss_total_batch_size": training.batch_size,
        "ss_lr_scheduler": training.schedule.value,
        "ss_lr_warmup_steps": training.warmup_steps
        if training.warmup_steps is not None
        else round(training.warmup_share * session.steps_of(stage)),
        "ss_optimizer": str(training.optimizer),
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_mixed_precision": session.memory_plan.precision.value.replace("fp32", "no"),
        "ss_loss_type": objective.loss.value.replace("mse", "l2"),
        "ss_min_snr_gamma": objective.snr_gamma,
        "ss_debiased_estimation": objective.debiased,
        "ss_noise_offset": objective.noise_offset or None,
        "ss_multires_noise_discount": objective.pyramid_noise,
        "ss_ip_noise_gamma": objective.input_perturbation or None,
        "ss_zero_terminal_snr": objective.zero_terminal_snr,
        "ss_caption_dropout_rate": training.caption_dropout,
        "ss_cache_latents": True,
        "ss_seed": training.seed,
        "ss_max_token_length": session.spec.base.max_token_length,
        "ss_clip_skip": session.spec.base.clip_skip if session.spec.base.clip_skip > 1 else None,
        "ss_training_comment": f"Darkroom, preset {session.spec.preset}",
    }


def _data(session: Session) -> dict[str, Any]:
    train, training = session.examples[Split.TRAIN], session.spec.training
    sizes = Counter(train.sizes)
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(sorted(sizes.items()))
    }
    resolution = session.task.resolution
    rows = epoch_exposure(session.mixture, session.repeats(session.stages[0]))
    views = Counter({role: sum(row.views for row in rows if row.role is role) for role in MixRole})
    return {
        "ss_num_train_images": views[MixRole.TRAIN],
        "ss_num_validation_images": len(session.examples[Split.VALIDATION].images),
        "ss_num_reg_images": views[MixRole.REGULARIZATION],
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_enable_bucket": True,
        "ss_bucket_info": {"buckets": buckets},
        "ss_dataset_dirs": _folders(rows, MixRole.TRAIN),
        "ss_reg_dataset_dirs": _folders(rows, MixRole.REGULARIZATION),
        "ss_tag_frequency": _tags(session),
        "ss_shuffle_caption": training.tag_shuffle,
        "ss_keep_tokens": training.keep_tags if training.tag_shuffle else None,
        "ss_prior_loss_weight": training.regularization_weight if views[MixRole.REGULARIZATION] else None,
    }


def _folders(rows: Sequence[EpochExposure], role: MixRole) -> dict[str, dict[str, float]]:
    """Describe the folders of a role; repeats are integers if they are the same in each epoch."""
    return {
        row.dataset: {
            "n_repeats": int(row.per_image) if row.per_image.is_integer() else round(row.per_image, 2),
            "img_count": row.images,
        }
        for row in rows
        if row.role is role
    }


def _tags(session: Session) -> dict[str, dict[str, int]]:
    train = session.examples[Split.TRAIN]
    tags: dict[str, Counter[str]] = {}
    for member, caption in zip(train.members, train.captions, strict=True):
        counts = tags.setdefault(session.mixture.names[member.source], Counter())
        counts.update(tag.strip() for tag in caption.split(",") if tag.strip())
    return {name: dict(counts.most_common()) for name, counts in tags.items()}


def _modelspec(session: Session, sample: Path) -> dict[str, Any]:
    """Return the keys of https://github.com/Stability-AI/ModelSpec, version 1.0.1."""
    resolution = session.task.resolution
    values: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": session.spec.name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if session.spec.training.trigger:
        values["modelspec.trigger_phrase"] = session.spec.training.trigger
    if session.spec.exports.author:
        values["modelspec.author"] = session.spec.exports.author
    if sample.is_file():
        values["modelspec.thumbnail"] = _thumbnail(sample)
    return values


def _thumbnail(sample: Path) -> str:
    """Return an image of at most 256 px as a data URI, a JPEG, as the standard asks."""
    with PILImage.open(sample) as pil_image:
        small = pil_image.convert("RGB")
    small.thumbnail((256, 256))
    content = BytesIO()
    small.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"
