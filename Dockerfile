# The README's installation in a container: docker build -t harness . (docs/clusters.md says how it is run).
FROM python:3.11-slim
# For `backbone: {compile: true}`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/harness
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY docs/assets/katex/LICENSE docs/assets/katex/LICENSE
COPY harness harness
COPY methods methods
COPY sweeps sweeps
COPY results results
RUN pip install --no-cache-dir -c constraints.txt '.[train]'
# Data, stores, reports and caches are directories of the host.
ENV HARNESS_CACHE=/workspace/.cache
WORKDIR /workspace
ENTRYPOINT ["python", "-m"]
CMD ["harness"]
