# syntax=docker/dockerfile:1
# MetaMorph on a GPU:
#
#   docker build -t metamorph .
#   docker run --rm --gpus all metamorph
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" --user "$(id -u):$(id -g)" metamorph train my.yaml
#
# Versions of Python packages are those of constraints.txt. torch brings its own CUDA libraries, so
# the compiler of the first stage stays there.
ARG CUDA=13.0.1
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/build
ENV PATH=/opt/build/bin:$PATH
WORKDIR /source
# What changes seldom comes first: these layers are kept.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt setuptools torch
COPY CMakeLists.txt ./
COPY csrc csrc
COPY kernels kernels
RUN METAMORPH_CPU=1 METAMORPH_CUDA=1 pip wheel --no-cache-dir --no-deps --no-build-isolation \
    --wheel-dir /wheels ./kernels
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY configs configs
COPY metamorph metamorph
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM nvidia/cuda:${CUDA}-base-ubuntu${UBUNTU}
# Triton compiles what launches its kernels, so it wants a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/metamorph \
    && useradd --create-home --uid 10001 metamorph
ENV PATH=/opt/metamorph/bin:$PATH
ARG EXTRAS=lora,parquet,serve,tensorboard,video
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt --find-links /wheels \
    "metamorph-vpit[${EXTRAS}]"
# Not root, and any other user (--user) has a place for what Triton and others keep.
ENV HOME=/home/metamorph
RUN chmod 1777 /home/metamorph
USER 10001
WORKDIR /work
ENTRYPOINT ["metamorph"]
CMD ["doctor"]
