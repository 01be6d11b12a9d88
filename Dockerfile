# Darkroom for the GPU box: bot and trainer in one image, the same as `make run`.
#
#   docker build -t darkroom .
#   docker build -t darkroom --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .     (no GPU: 3 GB smaller)
#
# pip's torch brings its own CUDA libraries, so a plain Debian with the host's driver (NVIDIA Container Toolkit) is enough.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX}

# make: for `make demo` and `make check` inside the image. tini: forwards SIGTERM and reaps trainers that outlive a bot.
# fonts-wqy-microhei: Chinese, Japanese and Korean captions on sheets and charts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make tini fonts-wqy-microhei \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/darkroom
# The libraries first, from a package without code: a change of the code does not download torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir bot trainer \
    && python -m pip install -c constraints.txt -e '.[bot,trainer]' \
    && python -m pip install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
COPY . .
# Again, without libraries: only now are all packages there. Compiled here, because the bot's user may not write beside them:
# each process would compile what it imports again (1.2 s of CPU for all modules).
RUN python -m pip install -c constraints.txt --no-deps -e . \
    && python -m compileall -q bot trainer

RUN useradd --system --create-home --home-dir /var/lib/darkroom darkroom
USER darkroom
WORKDIR /var/lib/darkroom
ENV HF_HOME=/var/lib/darkroom/hub
VOLUME /var/lib/darkroom

# tini is pid 1. When the container ends, so do the trainings; they continue from their last checkpoints.
ENTRYPOINT ["tini", "--", "darkroom"]
CMD ["run", "--config", "/etc/darkroom/config.toml"]
