"""Everything an operator may set, read once from the environment (prefix ZEROGATE_) and passed on."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.names import NAME_PATTERN
from zerogate.encoder_files import DEFAULT_ENCODER, Role


class EncoderSpec(BaseModel):
    """An encoder that this installation offers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    source: str = Field(description="the built-in encoder's name, a folder, or a hub id")
    revision: str | None = None
    prompts: dict[Role, str] | None = None
    max_length: int | None = Field(default=None, ge=8, le=131_072)


class Settings(BaseSettings):
    """The embedded profile needs none of these; the production profile sets the four URLs."""

    model_config = SettingsConfigDict(env_prefix="ZEROGATE_", env_nested_delimiter="__", extra="ignore", frozen=True)

    data_dir: Path = Field(
        default=Path("zerogate-data"), description="datasets, heads, and in the embedded profile everything else"
    )
    cache_dir: Path | None = Field(default=None, description="embedding cache, local to a machine; default data_dir/cache")
    embedding_cache_bytes: int = Field(default=64 * 2**30, ge=2**20, description="largest size of the embedding cache's folder")
    database_url: str | None = Field(default=None, description="default: SQLite in data_dir")
    files_url: str | None = Field(
        default=None,
        pattern=r"^s3://[^/]+(/.*)?$",
        description="where files are kept: s3://bucket/prefix, with credentials, region and endpoint from the AWS_* environment "
        "variables; default: the folder files in data_dir",
    )
    broker_url: str = Field(default="memory://localhost/", description="memory:// or redis://...")
    qdrant_url: str | None = Field(default=None, description="default: Qdrant Edge in data_dir")
    qdrant_api_key: SecretStr | None = None
    encoders: tuple[EncoderSpec, ...] = (EncoderSpec(name=DEFAULT_ENCODER, source=DEFAULT_ENCODER),)
    encoder_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the hardware has it"
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    max_upload_bytes: int = Field(default=4 * 2**30, ge=1, description="largest dataset file")
    queue_tokens: int = Field(
        default=65_536,
        ge=1024,
        description="tokens that may wait for an encoder; a request counts for an eighth at most",
    )
    head_cache_bytes: int = Field(default=512 * 2**20, ge=0, description="heads in memory; those used longest ago go first")
    answer_cache_bytes: int = Field(default=0, ge=0, description="base vectors of the last questions in memory; 0: none")
    cpu_threads: int | None = Field(default=None, ge=1, description="threads of one matrix product; default: torch's choice")

    @property
    def embedding_cache_dir(self) -> Path:
        return self.cache_dir or self.data_dir / "cache"

    @property
    def sql_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'zerogate.db'}"

    @property
    def default_encoder(self) -> str:
        return self.encoders[0].name
