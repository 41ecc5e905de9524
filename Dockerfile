# One image for the api, the workers and the migration. The dependencies decide its size, and torch decides most of that:
#
#   docker build -t zerogate:gpu .                                    torch as PyPI has it: on Linux the CUDA build
#   docker build -t zerogate:cpu --build-arg TORCH_INDEX=<url> .      torch without CUDA, several GB smaller
#
# <url> is the package index of CPU wheels that PyTorch's own install page names. The CUDA build runs on a machine
# without a GPU as well, so an image built without TORCH_INDEX serves both.
# A model that is not in a wheel is downloaded at its first use, to HF_HOME in the cache folder.

FROM python:3.11-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/zerogate
ENV PATH=/opt/zerogate/bin:$PATH
WORKDIR /src

# Dependencies come before the sources: a changed line of ours then rebuilds seconds and not gigabytes.
COPY pyproject.toml constraints.txt ./
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" "$(grep -E '^torch==' constraints.txt)"; \
    fi
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib as t; print(*t.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/dependencies.txt \
    && pip install -c constraints.txt -r /tmp/dependencies.txt

COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt . \
    && pip check


FROM python:3.11-slim AS runtime

# A fixed number, so that the owner of the files in a volume is the same in every build.
RUN groupadd --gid 10001 zerogate \
    && useradd --uid 10001 --gid zerogate --create-home --shell /usr/sbin/nologin zerogate \
    # A named volume takes over the owner of the folder that it covers: so the folders must exist here.
    && install -d -o zerogate -g zerogate /var/lib/zerogate /var/lib/zerogate/files /var/lib/zerogate/cache

COPY --from=build /opt/zerogate /opt/zerogate

ENV PATH=/opt/zerogate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/lib/zerogate/cache/huggingface \
    ZEROGATE_HOST=0.0.0.0 \
    ZEROGATE_PORT=8000 \
    ZEROGATE_DATA_DIR=/var/lib/zerogate/files \
    ZEROGATE_CACHE_DIR=/var/lib/zerogate/cache/embeddings

USER zerogate
WORKDIR /var/lib/zerogate
EXPOSE 8000
STOPSIGNAL SIGTERM

# The image has no curl. http.client, because urllib would ask a proxy for 127.0.0.1 where HTTP_PROXY is set.
# /livez and not /readyz: a service whose database is away still serves embeddings, and a restart would not bring that back.
# The start period covers the reading of the encoders' files. Workers replace this check (compose file).
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import os, sys, http.client as h; c = h.HTTPConnection('127.0.0.1', int(os.environ['ZEROGATE_PORT']), timeout=4); c.request('GET', '/livez'); r = c.getresponse(); r.read(); sys.exit(r.status != 200)"]

ENTRYPOINT ["zerogate"]
CMD ["serve"]
