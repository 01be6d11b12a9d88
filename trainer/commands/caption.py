"""`python -m trainer caption`: captions by a local model for the pictures of a prepared dataset that have none."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.commands.bar import Bar
from trainer.commands.quiet import quieten_libraries
from trainer.commands.refusing import refuse
from trainer.dataset.layout import EDITS_NAME
from trainer.errors import TrainerError
from trainer.protocol.edits import EditsError


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `caption` takes."""
    parser.add_argument("dataset_dir", type=Path, metavar="DATASET_DIR")
    parser.add_argument("--model", required=True, help="folder or hub name: BLIP, BLIP-2, GIT, Florence-2 or a tagger")
    parser.add_argument("--edits", type=Path, help="where the captions go; DATASET_DIR/edits.json if not given")
    parser.add_argument("--all", action="store_true", help="also where there is a caption that no person wrote here")
    parser.add_argument("--detail", choices=["short", "detailed"], default="short", help="how much Florence-2 says")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--device", help="cpu, cuda; the GPU where there is one if not given")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the captions into the edits; how many there are goes to stdout."""
    quieten_libraries()
    from trainer.captioning import writing
    from trainer.captioning.captioner import Detail

    edits = options.edits or options.dataset_dir / EDITS_NAME
    try:
        with Bar() as bar:
            count = writing.run(
                options.dataset_dir,
                options.model,
                edits,
                only_missing=not options.all,
                batch_size=options.batch_size,
                device=options.device,
                detail=Detail(options.detail),
                progress=bar,
            )
    except (TrainerError, EditsError) as error:
        return refuse(str(error))
    if not count:
        sys.stdout.write("No caption was written: every picture has one, or the model had nothing to say.\n")
        return 0
    sys.stdout.write(f"{count} captions written to {edits}. Prepare the dataset again to use them.\n")
    return 0
