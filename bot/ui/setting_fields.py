"""The settings that forms ask for, page by page: their labels, what each does, and its choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum

from trainer.protocol.augmentation import AugmentationPreset, Flip
from trainer.protocol.settings import Targets
from trainer.protocol.text import N_, translate
from trainer.protocol.training_settings import OptimizerKind, ScheduleKind


@dataclass(frozen=True)
class SettingField:
    """A setting as a form asks for it."""

    #: Dotted name, or `preset`, `base`, `name`, `mix`, `settings` (any of them, as TOML).
    name: str
    label: str
    description: str = ""
    _: KW_ONLY
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


_TITLES: Mapping[SettingsPage, str] = {
    SettingsPage.BASICS: N_("Name and prompts"),
    SettingsPage.LEARNING: N_("Learning"),
    SettingsPage.SIZE: N_("Size and resolution"),
    SettingsPage.STOPPING: N_("When to stop"),
    SettingsPage.CAPTIONS: N_("Captions"),
    SettingsPage.LOSS: N_("Loss and noise"),
    SettingsPage.VARIANTS: N_("Varied copies of images"),
    SettingsPage.MORE: N_("More datasets, anything else"),
}
#: As many as a form has room for.
_FIELDS: Mapping[SettingsPage, tuple[SettingField, ...]] = {
    SettingsPage.BASICS: (
        SettingField("name", N_("Name of the result"), is_text=True),
        SettingField(
            "training.trigger",
            N_("Trigger word"),
            N_("The word that you will use in prompts to call it up, such as zkz."),
            is_text=True,
        ),
        SettingField(
            "prior.class_prompt",
            N_("What your subject is"),
            N_("Such as “a photo of a dog”: the model keeps drawing other dogs as it does now."),
            is_text=True,
        ),
        SettingField(
            "samples.prompts",
            N_("Prompts of the samples"),
            N_("One on each line. They are drawn after every epoch, so you see it learn."),
            is_long=True,
            is_text=True,
        ),
        SettingField("training.epochs", N_("Epochs"), N_("How many times training goes through your images.")),
    ),
    SettingsPage.LEARNING: (
        SettingField(
            "training.learning_rate",
            N_("Learning rate (lr)"),
            N_("How big each step is. Too high breaks the model, too low learns nothing."),
        ),
        SettingField(
            "training.optimizer",
            N_("Optimizer"),
            N_("How the steps are computed. prodigy finds the learning rate itself: set it to 1."),
            choices=tuple(OptimizerKind),
        ),
        SettingField(
            "training.schedule",
            N_("Schedule"),
            N_("How the learning rate falls over time."),
            choices=tuple(ScheduleKind),
        ),
        SettingField(
            "training.batch_size", N_("Images per step (batch_size)"), N_("More images make steadier, slower steps.")
        ),
        SettingField(
            "training.repeats",
            N_("Repeats"),
            N_("How often each image is seen in one epoch. 0: as often as needed for 350 images."),
        ),
    ),
    SettingsPage.SIZE: (
        SettingField(
            "method.rank",
            N_("Size of the LoRA (rank)"),
            N_("Larger learns more detail, and copies your images sooner. 16 is usual."),
        ),
        SettingField(
            "method.alpha", N_("Strength (alpha)"), N_("Usually the same as the rank. Half of it learns half as fast.")
        ),
        SettingField(
            "method.targets",
            N_("Which layers learn"),
            N_("attention is usual; all also learns new shapes and textures."),
            choices=tuple(each for each in Targets if each is not Targets.PATTERN),
        ),
        SettingField(
            "training.resolution",
            N_("Resolution, px"),
            N_("Left empty: the size that the base was made for. Smaller is faster and needs less memory."),
        ),
        SettingField(
            "method.text_encoder",
            N_("Train the text encoder too"),
            N_("It understands the trigger word better, and forgets other words sooner."),
            choices=("true", "false"),
        ),
    ),
    SettingsPage.STOPPING: (
        SettingField(
            "training.max_steps",
            N_("Most steps"),
            N_("It ends after this many steps, even in the middle of an epoch; at the latest after the last epoch."),
        ),
        SettingField(
            "early_stopping.enabled",
            N_("Stop early"),
            N_("Stop when images that are not trained on no longer come out better."),
            choices=("true", "false"),
        ),
        SettingField(
            "early_stopping.patience",
            N_("Patience, epochs"),
            N_("It stops early after this many epochs without progress."),
        ),
        SettingField(
            "early_stopping.max_hours",
            N_("Most hours"),
            N_("After this many hours, the training ends with the current epoch."),
        ),
        SettingField("training.seed", N_("Seed"), N_("The same seed and settings give the same result.")),
    ),
    SettingsPage.CAPTIONS: (
        SettingField(
            "training.caption_dropout",
            N_("Share without a caption"),
            N_("0.05: every twentieth time an image is learned without its caption."),
        ),
        SettingField(
            "training.tag_shuffle",
            N_("Shuffle tags"),
            N_("Tags change places each time, so that their order is not learned."),
            choices=("true", "false"),
        ),
        SettingField(
            "training.keep_tags",
            N_("Tags that stay in front"),
            N_("This many tags are never shuffled or left out. The trigger word counts."),
        ),
        SettingField(
            "training.tag_dropout", N_("Share of tags left out"), N_("0.1: each tag is left out one time in ten.")
        ),
        SettingField(
            "objective.masked",
            N_("Use the masks"),
            N_("Only what the mask of an image shows is learned."),
            choices=("true", "false"),
        ),
    ),
    SettingsPage.LOSS: (
        SettingField(
            "objective.snr_gamma", N_("Min-SNR gamma"), N_("Evens out the noise levels. 5 is usual, empty is off.")
        ),
        SettingField(
            "objective.noise_offset",
            N_("Noise offset"),
            N_("Lets it learn very dark and very bright images. 0.03 to 0.1 is usual."),
        ),
        SettingField("training.weight_decay", N_("Weight decay"), N_("Pulls the weights back a little at each step.")),
        SettingField(
            "training.ema_decay",
            N_("Averaged weights (ema_decay)"),
            N_("Uses the average of the last steps: smoother results. 0.999 is usual."),
        ),
        SettingField(
            "method.dropout",
            N_("Dropout"),
            N_("Leaves out random parts of the LoRA, so that it copies your images less. 0.1 is usual."),
        ),
    ),
    SettingsPage.VARIANTS: (
        SettingField(
            "augmentation.preset",
            N_("Varied copies"),
            N_("light suits everything, photo varies colors too, art keeps lines and palette."),
            choices=tuple(each for each in AugmentationPreset if each is not AugmentationPreset.CUSTOM),
        ),
        SettingField(
            "augmentation.variants",
            N_("Copies of each image"),
            N_("Each one makes the preparation longer, not the training."),
        ),
        SettingField(
            "augmentation.flip",
            N_("Mirrored copies"),
            N_("auto leaves out images whose caption names a side or a text."),
            choices=tuple(Flip),
        ),
        SettingField(
            "prior.images",
            N_("Class images"),
            N_("The base draws this many images of what your subject is; they are learned together with yours."),
        ),
        SettingField("prior.weight", N_("Share of class images"), N_("0.5: as many class images as images of yours.")),
    ),
    SettingsPage.MORE: (
        SettingField(
            "mix",
            N_("Datasets to mix in"),
            N_("One on each line: cats · cats weight=0.3 · dogs repeats=2 · people regularization"),
            is_long=True,
            is_text=True,
        ),
        SettingField(
            "settings",
            N_("Any other settings"),
            N_("Lines as in a .toml file: objective.snr_gamma = 5. Stages: [[stages]]"),
            is_long=True,
            is_text=True,
        ),
    ),
}


def page_title(page: SettingsPage) -> str:
    """What the settings of a page are about."""
    return translate(_TITLES[page])


def fields_of(page: SettingsPage) -> tuple[SettingField, ...]:
    """Return the settings of a page, in the language of the one who reads."""
    return tuple(
        # The catalog's entry for "" is its header.
        replace(each, label=translate(each.label), description=each.description and translate(each.description))
        for each in _FIELDS[page]
    )
