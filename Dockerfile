# The service on CPUs, with versions as `make` installs them. The catalog and its model are mounted, and only read:
#
#   docker build -t lrvsf .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/catalog:/catalog:ro" -v "$PWD/assets/mini-condvit:/model:ro" lrvsf
#
# With -e LRVSF_TOKEN=... clients have to send a token. `docker stop` waits for 10 seconds, which --time makes longer.
FROM python:3.12-slim

WORKDIR /app
COPY requirements.txt requirements-search.txt constraints.txt ./
# torch alone first, from the index of its builds for CPUs: the usual one brings gigabytes for GPUs.
RUN pip install --no-cache-dir --no-deps -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt -r requirements-search.txt \
    && pip check
COPY search_catalog.py configuration_condvit.py modeling_condvit.py processing_condvit.py ./
COPY lrvsf lrvsf

# The process writes nothing but large uploads, to /tmp, and asks nobody for anything.
RUN useradd --system --uid 10001 --home-dir /tmp lrvsf
USER 10001
ENV HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["python", "search_catalog.py"]
CMD ["serve", "/catalog", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
