# docker build -t dcamt .                            for CPUs
# docker build -t dcamt --build-arg DEVICE=cuda .    for NVIDIA GPUs (docker run --gpus all ...)
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" dcamt predict model scans --out segmentations
FROM python:3.11-slim
ARG DEVICE=cpu
WORKDIR /opt/dcamt
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY src src
# PyTorch from PyPI brings CUDA. The build without it is much smaller.
RUN if [ "$DEVICE" = cpu ]; then \
      pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' requirements.txt)"; \
    fi \
 && pip install --no-cache-dir -r requirements.txt \
 && pip install --no-cache-dir '.[dicom]'
# Any user may run it, also one without a name and a home.
ENV HOME=/tmp DCAMT_CACHE=/tmp/dcamt
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["dcamt"]
CMD ["--help"]
