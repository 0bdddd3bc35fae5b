# Image of the command line, for the CPU or, with VARIANT=cuda, for NVIDIA GPUs:
#     docker build -t probe .
#     docker build -t probe:cuda --build-arg VARIANT=cuda .
#     docker run --rm -v "$PWD/results:/work/results" -v "$HOME/.cache:/home/probe/.cache" \
#         probe run --dataset digits --model tiny
# Add --gpus all to use a GPU. The user of the image has the id 1000 and must be able to write to both folders.
FROM python:3.12-slim
ARG VARIANT=cpu
WORKDIR /src

# The libraries are installed first, because they change less often than the package. The wheels of torch for the CPU are
# in torch's own index, and do not need the libraries for GPUs.
COPY requirements.lock .
RUN case "$VARIANT" in \
        cpu) grep -Ev '^(cuda|nvidia|triton)' requirements.lock > chosen.lock && \
             pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r chosen.lock ;; \
        cuda) pip install --no-cache-dir -r requirements.lock ;; \
        *) echo "unknown VARIANT '$VARIANT'; use cpu or cuda" >&2; exit 2 ;; \
    esac

COPY pyproject.toml README.md LICENSE ./
COPY probe probe
RUN pip install --no-cache-dir --no-deps . && useradd --uid 1000 --create-home probe && install -d -o probe /work

USER probe
WORKDIR /work
ENTRYPOINT ["python", "-m", "probe"]
CMD ["--help"]
