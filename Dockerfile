# docker build --target serve -t lucid-deploy:serve .    runs and serves artifacts on the CPU, with compiled kernels
# docker build --target export -t lucid-deploy:export .  the same with PyTorch: exports and verifies, too
# docker build --target gpu -t lucid-deploy:gpu .        TensorRT-RTX and PyTorch on NVIDIA GPUs; compiles GPU kernels, long
# .ci/docker_smoke_test.sh builds an image and runs it. Neither was run where this was written.
FROM python:3.12-slim-bookworm AS source
RUN apt-get update && apt-get install -y --no-install-recommends g++ binutils make && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY .ci .ci
COPY lucid_deploy lucid_deploy
COPY export export
COPY plugins plugins
COPY conformance conformance
RUN python -m venv /build

FROM source AS wheel-cpu
RUN /build/bin/pip install --no-cache-dir -e ".[cpu,wheel]" \
    && /build/bin/python .ci/build_wheel.py --cpu-only --output /dist

FROM source AS wheel-gpu
# All kernels by default; --build-arg WHEEL="--arch 86,90 --dtype float16" compiles those only.
ARG WHEEL=
RUN /build/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.9,<3" \
    && /build/bin/pip install --no-cache-dir -e ".[cpu,export,kernels,wheel]" \
    && /build/bin/python .ci/build_wheel.py $WHEEL --output /dist

FROM python:3.12-slim-bookworm AS base
RUN useradd --create-home lucid
ENV PYTHONUNBUFFERED=1 HF_HOME=/home/lucid/.cache/huggingface
ENTRYPOINT ["lucid-deploy"]
CMD ["doctor"]

FROM base AS serve
RUN --mount=type=bind,from=wheel-cpu,source=/dist,target=/dist pip install --no-cache-dir "$(echo /dist/*.whl)[cpu,serve]"
USER lucid
WORKDIR /home/lucid

FROM serve AS export
USER root
RUN --mount=type=bind,from=wheel-cpu,source=/dist,target=/dist \
    pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.9,<3" \
    && pip install --no-cache-dir "$(echo /dist/*.whl)[cpu,serve,export]"
USER lucid

# The driver's libraries come from the host (--gpus all); CUDA's come with PyTorch's and TensorRT-RTX's wheels.
FROM base AS gpu
COPY --from=wheel-gpu /dist /dist
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[gpu,rtx,serve,export]" && rm -r /dist
USER lucid
WORKDIR /home/lucid
