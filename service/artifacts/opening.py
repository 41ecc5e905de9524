"""Where the files are kept, by the settings."""

from service.artifacts.folder import FolderArtifacts
from service.artifacts.store import Artifacts
from service.settings import Settings


def open_artifacts(settings: Settings) -> Artifacts:
    """The files in the bucket that `files_url` names, or else in the folder `files` of the data folder. Asks no bucket yet."""
    if settings.files_url is None:
        return FolderArtifacts(settings.data_dir / "files")
    from service.artifacts.bucket import BucketArtifacts  # here: without a bucket nothing needs obstore

    return BucketArtifacts(settings.files_url, settings.data_dir / "bucket")
