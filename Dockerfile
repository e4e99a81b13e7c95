# megatron_vlm on NVIDIA's PyTorch image, which brings CUDA, torch, Transformer Engine, flash-attention and apex as NVIDIA
# builds them.  None of these is replaced: the build fails where an installation would have touched torch.
#
#   docker build -t megatron-vlm .
#   docker run --rm --gpus all --ipc=host -v "$PWD/runs:/runs" megatron-vlm megatron-vlm train --help
#   docker run --rm --gpus all --ipc=host -it megatron-vlm bash
#
# (the first megatron-vlm is the image, the second the command).  Files in a mounted folder are written by user 10001; to
# write them as yourself, build with --build-arg USER_ID="$(id -u)".
#
# Another release: docker build --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:YY.MM-py3 .
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.09-py3
FROM ${BASE_IMAGE}

ARG USER_NAME=trainer
ARG USER_ID=10001

WORKDIR /opt/megatron-vlm
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY megatron_vlm megatron_vlm
COPY tools tools
COPY examples examples

# --no-build-isolation: build with what is installed, instead of downloading tools for the build alone.
# The ranges of pyproject.toml serve here, not constraints.txt: the image's own releases are the ones that fit together.
RUN set -eu; \
    torch_before="$(python -c 'import torch; print(torch.__version__, torch.__file__)')"; \
    pip install --no-cache-dir "setuptools>=77" wheel "pybind11>=2.13"; \
    MEGATRON_VLM_REQUIRE_NATIVE=1 MEGATRON_VLM_REQUIRE_CUDA=1 \
      pip install --no-cache-dir --no-build-isolation .; \
    test "$torch_before" = "$(python -c 'import torch; print(torch.__version__, torch.__file__)')" \
      || { echo "the installation replaced the image's torch ($torch_before)" >&2; exit 1; }; \
    cd /; python -c 'from megatron_vlm.ops.native import native_operators; assert native_operators() is not None'; \
    python -c 'from megatron_vlm.ops.kernels import LIBRARY, Kernels; Kernels(LIBRARY)'

RUN useradd --create-home --uid "${USER_ID}" "${USER_NAME}" && install -d -o "${USER_NAME}" /runs
USER ${USER_NAME}
WORKDIR /runs

# Whether a run could start here: libraries, devices, native code, room in /dev/shm.
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m CMD ["megatron-vlm", "doctor"]

# The base image's own entrypoint stays: it prints the release notes that matter and runs whatever command it is given.
CMD ["megatron-vlm", "--help"]
