"""The settings that forms ask for, page by page: their labels, what each does, and its choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trainer.protocol.augmentation import AugmentationPreset, Flip
from trainer.protocol.settings import Targets
from trainer.protocol.text import _
from trainer.protocol.training_settings import OptimizerKind, ScheduleKind


@dataclass(frozen=True, kw_only=True)
class SettingField:
    """A setting as a form asks for it."""

    #: Dotted name, or `preset`, `base`, `name`, `mix`, `settings` (any of them, as TOML).
    name: str
    label: str
    description: str = ""
    #: A menu of these values; empty: a line of text.
    choices: tuple[str, ...] = ()
    #: What each choice is for.
    hints: Mapping[str, str] | None = None
    #: There is no other value than the choices.
    is_closed: bool = False
    is_long: bool = False
    #: It stays text, also if it looks like a number.
    is_text: bool = False


class SettingsPage(StrEnum):
    """A form of settings that belong together; the values are in the ids of buttons."""

    BASICS = "basics"
    LEARNING = "learning"
    SIZE = "size"
    STOPPING = "stopping"
    CAPTIONS = "captions"
    LOSS = "loss"
    VARIANTS = "variants"
    MORE = "more"


def page_title(page: SettingsPage) -> str:
    """What the settings of a page are about."""
    match page:
        case SettingsPage.BASICS:
            return _("Name and prompts")
        case SettingsPage.LEARNING:
            return _("Learning")
        case SettingsPage.SIZE:
            return _("Size and resolution")
        case SettingsPage.STOPPING:
            return _("When to stop")
        case SettingsPage.CAPTIONS:
            return _("Captions")
        case SettingsPage.LOSS:
            return _("Loss and noise")
        case SettingsPage.VARIANTS:
            return _("Varied copies of images")
        case SettingsPage.MORE:
            return _("More datasets, anything else")


def fields_of(page: SettingsPage) -> tuple[SettingField, ...]:
    """Return the settings of a page, as many as a form has room for."""
    match page:
        case SettingsPage.BASICS:
            return (
                SettingField(name="name", label=_("Name of the result"), is_text=True),
                _trigger(),
                _class_prompt(),
                SettingField(
                    name="samples.prompts",
                    label=_("Prompts of the samples"),
                    description=_("One on each line. They are drawn after every epoch, so you see it learn."),
                    is_long=True,
                    is_text=True,
                ),
                SettingField(
                    name="training.epochs",
                    label=_("Epochs"),
                    description=_("How many times training goes through your images."),
                ),
            )
        case SettingsPage.LEARNING:
            return _learning_fields()
        case SettingsPage.SIZE:
            return _size_fields()
        case SettingsPage.STOPPING:
            return _stopping_fields()
        case SettingsPage.CAPTIONS:
            return _caption_fields()
        case SettingsPage.LOSS:
            return _loss_fields()
        case SettingsPage.VARIANTS:
            return _variant_fields()
        case SettingsPage.MORE:
            return (
                SettingField(
                    name="mix",
                    label=_("Datasets to mix in"),
                    description=_("One on each line: cats · cats weight=0.3 · dogs repeats=2 · people regularization"),
                    is_long=True,
                    is_text=True,
                ),
                SettingField(
                    name="settings",
                    label=_("Any other settings"),
                    description=_("Lines as in a .toml file: objective.snr_gamma = 5. Stages: [[stages]]"),
                    is_long=True,
                    is_text=True,
                ),
            )


def _trigger() -> SettingField:
    return SettingField(
        name="training.trigger",
        label=_("Trigger word"),
        description=_("The word that you will use in prompts to call it up, such as zkz."),
        is_text=True,
    )


def _class_prompt() -> SettingField:
    return SettingField(
        name="prior.class_prompt",
        label=_("What your subject is"),
        description=_("Such as “a photo of a dog”: the model keeps drawing other dogs as it does now."),
        is_text=True,
    )


def _learning_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="training.learning_rate",
            label=_("Learning rate (lr)"),
            description=_("How big each step is. Too high breaks the model, too low learns nothing."),
        ),
        SettingField(
            name="training.optimizer",
            label=_("Optimizer"),
            description=_("How the steps are computed. prodigy finds the learning rate itself: set it to 1."),
            choices=tuple(OptimizerKind),
        ),
        SettingField(
            name="training.schedule",
            label=_("Schedule"),
            description=_("How the learning rate falls over time."),
            choices=tuple(ScheduleKind),
        ),
        SettingField(
            name="training.batch_size",
            label=_("Images per step (batch_size)"),
            description=_("More images make steadier, slower steps."),
        ),
        SettingField(
            name="training.repeats",
            label=_("Repeats"),
            description=_("How often each image is seen in one epoch. 0: as often as needed for 350 images."),
        ),
    )


def _size_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="method.rank",
            label=_("Size of the LoRA (rank)"),
            description=_("Larger learns more detail, and copies your images sooner. 16 is usual."),
        ),
        SettingField(
            name="method.alpha",
            label=_("Strength (alpha)"),
            description=_("Usually the same as the rank. Half of it learns half as fast."),
        ),
        SettingField(
            name="method.targets",
            label=_("Which layers learn"),
            description=_("attention is usual; all also learns new shapes and textures."),
            choices=tuple(each for each in Targets if each is not Targets.PATTERN),
        ),
        SettingField(
            name="training.resolution",
            label=_("Resolution, px"),
            description=_("Left empty: the size that the base was made for. Smaller is faster and needs less memory."),
        ),
        SettingField(
            name="method.text_encoder",
            label=_("Train the text encoder too"),
            description=_("It understands the trigger word better, and forgets other words sooner."),
            choices=("true", "false"),
        ),
    )


def _stopping_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="training.max_steps",
            label=_("Most steps"),
            description=_(
                "It ends after this many steps, even in the middle of an epoch; at the latest after the last epoch."
            ),
        ),
        SettingField(
            name="early_stopping.enabled",
            label=_("Stop early"),
            description=_("Stop when images that are not trained on no longer come out better."),
            choices=("true", "false"),
        ),
        SettingField(
            name="early_stopping.patience",
            label=_("Patience, epochs"),
            description=_("It stops early after this many epochs without progress."),
        ),
        SettingField(
            name="early_stopping.max_hours",
            label=_("Most hours"),
            description=_("After this many hours, the training ends with the current epoch."),
        ),
        SettingField(
            name="training.seed",
            label=_("Seed"),
            description=_("The same seed and settings give the same result."),
        ),
    )


def _caption_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="training.caption_dropout",
            label=_("Share without a caption"),
            description=_("0.05: every twentieth time an image is learned without its caption."),
        ),
        SettingField(
            name="training.tag_shuffle",
            label=_("Shuffle tags"),
            description=_("Tags change places each time, so that their order is not learned."),
            choices=("true", "false"),
        ),
        SettingField(
            name="training.keep_tags",
            label=_("Tags that stay in front"),
            description=_("This many tags are never shuffled or left out. The trigger word counts."),
        ),
        SettingField(
            name="training.tag_dropout",
            label=_("Share of tags left out"),
            description=_("0.1: each tag is left out one time in ten."),
        ),
        SettingField(
            name="objective.masked",
            label=_("Use the masks"),
            description=_("Only what the mask of an image shows is learned."),
            choices=("true", "false"),
        ),
    )


def _loss_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="objective.snr_gamma",
            label=_("Min-SNR gamma"),
            description=_("Evens out the noise levels. 5 is usual, empty is off."),
        ),
        SettingField(
            name="objective.noise_offset",
            label=_("Noise offset"),
            description=_("Lets it learn very dark and very bright images. 0.03 to 0.1 is usual."),
        ),
        SettingField(
            name="training.weight_decay",
            label=_("Weight decay"),
            description=_("Pulls the weights back a little at each step."),
        ),
        SettingField(
            name="training.ema_decay",
            label=_("Averaged weights (ema_decay)"),
            description=_("Uses the average of the last steps: smoother results. 0.999 is usual."),
        ),
        SettingField(
            name="method.dropout",
            label=_("Dropout"),
            description=_("Leaves out random parts of the LoRA, so that it copies your images less. 0.1 is usual."),
        ),
    )


def _variant_fields() -> tuple[SettingField, ...]:
    return (
        SettingField(
            name="augmentation.preset",
            label=_("Varied copies"),
            description=_("light suits everything, photo varies colors too, art keeps lines and palette."),
            choices=tuple(each for each in AugmentationPreset if each is not AugmentationPreset.CUSTOM),
        ),
        SettingField(
            name="augmentation.variants",
            label=_("Copies of each image"),
            description=_("Each one makes the preparation longer, not the training."),
        ),
        SettingField(
            name="augmentation.flip",
            label=_("Mirrored copies"),
            description=_("auto leaves out images whose caption names a side or a text."),
            choices=tuple(Flip),
        ),
        SettingField(
            name="prior.images",
            label=_("Class images"),
            description=_(
                "The base draws this many images of what your subject is; they are learned together with yours."
            ),
        ),
        SettingField(
            name="prior.weight",
            label=_("Share of class images"),
            description=_("0.5: as many class images as images of yours."),
        ),
    )
