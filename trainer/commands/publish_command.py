"""`python -m trainer publish`: uploads a finished job to the Hugging Face hub, with its model card and samples.

The token is read from the environment (HF_TOKEN), never from the arguments, which every user of a machine can see. An
upload that was cut off is repeated as a whole: what the hub has already is not sent again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.commands.terminal import refuse
from trainer.exchange.event_file import read_all_events
from trainer.exchange.files import locate
from trainer.exchange.job_dir import read_spec
from trainer.protocol.events import EXIT_FAILED, EXIT_FINISHED
from trainer.protocol.exported_files import newest_files
from trainer.protocol.hub import Published
from trainer.protocol.spec import Spec, SpecError
from trainer.protocol.text import _

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKEN_VARIABLE = "HF_TOKEN"


def add_publish(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `publish`."""
    parser.add_argument("job_dir", type=Path, metavar="JOB_DIR", help="a finished job")
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME", help="made if it does not exist")
    parser.add_argument("--public", action="store_true", help="everyone may see it (default: only its owner)")
    parser.set_defaults(command=_publish)


def _publish(options: argparse.Namespace) -> int:
    """Upload the card, the files of the best epoch and the card's samples; print `Published` as a line of JSON."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not os.environ.get(TOKEN_VARIABLE, "").strip():
        return refuse(_("Set {variable} to a Hugging Face token that may write.", variable=TOKEN_VARIABLE))
    try:
        files = files_of(options.job_dir)
    except (OSError, ValueError, SpecError) as error:
        return refuse(_("{path} is not a finished job: {error}", path=options.job_dir, error=error))
    if not any(name.endswith((".safetensors", ".bin")) for name in files):
        return refuse(_("{path} has no files of a finished training to upload.", path=options.job_dir))
    try:
        published = upload(files, options.repository, is_public=options.public)
    except HFValidationError:
        return refuse(
            _("{name} is not a name that Hugging Face accepts; write it as owner/name.", name=options.repository)
        )
    except OfflineModeIsEnabled:
        return refuse(_("HF_HUB_OFFLINE is set, so nothing can be uploaded."))
    except HfHubHTTPError as error:
        return _report(error, options.repository)
    except Exception as error:  # noqa: BLE001 - of whatever library the hub's client connects with, and of hf_xet
        sys.stderr.write(_("Hugging Face cannot be reached ({error}).", error=type(error).__name__) + "\n")
        return EXIT_FAILED
    sys.stdout.write(published.model_dump_json() + "\n")
    return EXIT_FINISHED


def files_of(job_dir: Path) -> dict[str, Path]:
    """Return the files that are uploaded, by their names on the hub; each lies in the job folder.

    Raises:
        OSError, SpecError, ValueError: It is no job folder, or has no model card and can get none.
    """
    spec, output = read_spec(job_dir), job_dir / "output"
    events = tuple(read_all_events(job_dir))
    _require_card(job_dir, spec, output)
    found: dict[str, Path] = {}
    names = ["README.md", *(file.path.removeprefix("output/") for file in newest_files(events) if file.epoch is None)]
    for name in (*names, "images"):
        path = output / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                inside = str(file.relative_to(output))
                found[inside] = locate(output, inside)
    return found


def _require_card(job_dir: Path, spec: Spec, output: Path) -> None:
    """Write the card of a job that an earlier version trained."""
    from trainer.report.model_card import CARD_NAME, write_model_card

    if not (output / CARD_NAME).is_file():
        write_model_card(job_dir, spec, tuple(read_all_events(job_dir)))


def upload(files: dict[str, Path], repository: str, *, is_public: bool) -> Published:
    """Make the repository, or take the one that is there as it is, and commit all files at once.

    Raises:
        HfHubHTTPError: The hub refuses it.
        Exception: It cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # The last line of standard error is the sentence that the bot shows.
    disable_progress_bars()
    api = HfApi(token=os.environ[TOKEN_VARIABLE].strip(), library_name="darkroom")
    url = api.create_repo(repository, private=not is_public, exist_ok=True)
    before = api.model_info(repository)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    commit = api.create_commit(repository, operations, commit_message="Upload the model")
    return Published(url=str(url), is_private=bool(before.private), is_unchanged=commit.oid == before.sha)


def _report(error: HfHubHTTPError, repository: str) -> int:
    """Print why the hub refused; by the status, another try can help or not."""
    status = error.response.status_code
    if status == 401:
        return refuse(_("Hugging Face does not accept the token. Make a new one that may write."))
    if status in {403, 404}:
        return refuse(_("The token may not write to {repository}. Give it the permission.", repository=repository))
    if status == 400:
        return refuse(_("Hugging Face refuses the upload: {error}", error=error.server_message or error))
    sys.stderr.write(_("Hugging Face answers with an error ({status}).", status=status) + "\n")
    return EXIT_FAILED
