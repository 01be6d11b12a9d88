"""`python -m trainer preview`: what augmentation will make of a dataset, before any of it is trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.quiet import quieten_libraries
from trainer.commands.refusing import refuse
from trainer.errors import TrainerError
from trainer.protocol.augmentation import Augmentation, AugmentationPreset, Flip


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `preview` takes."""
    presets = [preset.value for preset in AugmentationPreset if preset is not AugmentationPreset.CUSTOM]
    parser.add_argument("dataset_dir", type=Path, metavar="DATASET_DIR")
    parser.add_argument("--preset", choices=presets, default="light", help="augmentation.preset of the job")
    parser.add_argument("--variants", type=int, choices=range(1, 17), default=4, metavar="N")
    parser.add_argument("--flip", choices=[flip.value for flip in Flip], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Draw the sheet; its path goes to stdout."""
    quieten_libraries()
    from trainer.tasks.preview import preview_variants

    augmentation = Augmentation(preset=options.preset, variants=options.variants, flip=options.flip)
    try:
        preview_variants(options.dataset_dir, augmentation, options.seed, options.out)
    except TrainerError as error:
        return refuse(str(error))
    except (OSError, ValueError):
        return refuse(f"{options.dataset_dir} is not a prepared dataset. Make it with `python -m trainer prepare`.")
    sys.stdout.write(f"{options.out}\n")
    return 0
