# megatron_vlm on NVIDIA's PyTorch image, which brings CUDA, torch, Transformer Engine, flash-attention, apex and DALI as NVIDIA
# builds them. None of these is replaced: the build fails where an installation would have touched torch.
#
#   docker build -t megatron-vlm .
#   docker run --rm --gpus all --ipc=host -v "$PWD/runs:/runs" megatron-vlm torchrun examples/pretrain_vlm_1b.sh
#   docker run --rm --gpus all --ipc=host -it megatron-vlm bash
#   docker build --target cpu -t megatron-vlm:cpu . && docker run --rm megatron-vlm:cpu        make demo, without a GPU
#
# Files in a mounted folder are written by user 10001; to write them as yourself, build with --build-arg USER_ID="$(id -u)".
# Another release: --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:YY.MM-py3. Fewer GPUs: --build-arg TORCH_CUDA_ARCH_LIST=9.0.
# docs/deployment.md has clusters, and the settings of NCCL.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.09-py3
ARG CPU_IMAGE=python:3.11-slim-bookworm

# -- the wheel, with kernels for these GPUs: A100, H100, B200 and what comes after -------------------------------------------
FROM ${BASE_IMAGE} AS wheel
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX"
ENV TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} MEGATRON_VLM_REQUIRE_NATIVE=1 MEGATRON_VLM_REQUIRE_CUDA=1
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY megatron_vlm megatron_vlm
# --no-build-isolation: build with what is installed, instead of downloading tools for the build alone
RUN pip install --no-cache-dir "setuptools>=77,<90" "wheel>=0.45,<1" "pybind11>=2.13,<4" \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# -- without a GPU: the demo, as on any laptop -------------------------------------------------------------------------------
FROM ${CPU_IMAGE} AS cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
ARG USER_ID=10001
RUN useradd --create-home --uid "${USER_ID}" trainer && install -d -o trainer /opt/megatron-vlm
USER ${USER_ID}
WORKDIR /opt/megatron-vlm
COPY --chown=trainer Makefile constraints.txt pyproject.toml setup.py README.md LICENSE ./
COPY --chown=trainer csrc csrc
COPY --chown=trainer megatron_vlm megatron_vlm
COPY --chown=trainer tools tools
COPY --chown=trainer examples examples
# PyTorch's own index has the build without CUDA, a tenth as large
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu MEGATRON_VLM_SKIP_CUDA=1
RUN make install
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m CMD [".venv/bin/megatron-vlm", "doctor"]
CMD ["make", "demo"]

# -- the image: NVIDIA's, and the wheel ---------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS gpu
ARG USER_NAME=trainer
ARG USER_ID=10001
WORKDIR /opt/megatron-vlm
COPY --from=wheel /wheels /wheels
COPY tools tools
COPY examples examples
COPY docker/entrypoint.sh /usr/local/bin/megatron-vlm-entrypoint
# The ranges of pyproject.toml serve here, not constraints.txt: the image's own releases are the ones that fit together.
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3003
RUN torch_before="$(python -c 'import torch; print(torch.__version__, torch.__file__)')"; \
    pip install --no-cache-dir /wheels/*.whl; \
    test "$torch_before" = "$(python -c 'import torch; print(torch.__version__, torch.__file__)')" \
      || { echo "the installation replaced the image's torch ($torch_before)" >&2; exit 1; }; \
    cd /; python -c 'from megatron_vlm.ops.native import native_operators; assert native_operators() is not None'; \
    python -c 'from megatron_vlm.ops.kernels import LIBRARY, Kernels; Kernels(LIBRARY)'; \
    chmod 0755 /usr/local/bin/megatron-vlm-entrypoint; \
    useradd --create-home --uid "${USER_ID}" "${USER_NAME}"; \
    install -d -o "${USER_NAME}" /runs
USER ${USER_ID}
WORKDIR /runs

# Whether a run could start here: libraries, devices, native code, room in /dev/shm.
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m CMD ["megatron-vlm", "doctor"]
ENTRYPOINT ["megatron-vlm-entrypoint"]
CMD ["megatron-vlm", "--help"]
