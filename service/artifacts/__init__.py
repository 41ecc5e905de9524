"""Files, by key, in a folder or in a bucket."""

from service.artifacts.opening import open_artifacts
from service.artifacts.store import Artifacts, Unit, Workspace

__all__ = ["Artifacts", "Unit", "Workspace", "open_artifacts"]
