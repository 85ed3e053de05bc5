# A node of a Ray cluster, head and workers alike, for deploy/ray-kubernetes.yaml:
#
#   docker build -f deploy/ray.Dockerfile -t registry.example/lrvsf-ray .
#
# Not the slim image: KubeRay asks with its wget whether a node is well.
FROM python:3.12

WORKDIR /app
COPY requirements.txt requirements-search.txt requirements-ray.txt constraints.txt ./
# ray[default] has what takes jobs. PyPI's torch brings the GPU's libraries.
RUN pip install --no-cache-dir -c constraints.txt -r requirements.txt -r requirements-search.txt \
        -r requirements-ray.txt "ray[default]" \
    && pip check
COPY search_catalog.py configuration_condvit.py modeling_condvit.py processing_condvit.py text_condvit.py ./
COPY lrvsf lrvsf

RUN useradd --system --uid 10001 --create-home lrvsf
USER 10001
ENV PYTHONPATH=/app HF_HUB_OFFLINE=1
