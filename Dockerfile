# One image, every program: balancer, balancerctl, resizer, resize-client. The targets `balancer` (the default) and
# `resizer` differ in their command, port and health check only. Wheels are built apart so that the image that runs holds
# neither pip's cache nor the sources. Runs as nobody in particular, on ports above 1024, and needs neither a root file
# system that can be written nor a capability: --read-only --cap-drop ALL --tmpfs /run/balancer.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY balancer balancer
COPY workers workers
COPY conf conf
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim AS programs
LABEL org.opencontainers.image.title="prefork-balancer" \
      org.opencontainers.image.description="A layer-4 TCP load balancer of forked workers, and a picture-resizing service" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --no-create-home balancer \
    && install -d -o balancer -g balancer /run/balancer /samples
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels prefork-balancer && rm -rf /wheels
COPY scripts/samples.py /usr/local/share/prefork-balancer/samples.py
# The admin socket lies below XDG_RUNTIME_DIR: `docker exec CONTAINER balancerctl status`. With a read-only root it is in
# /tmp where that can be written, else off, which the log says.
ENV XDG_RUNTIME_DIR=/run/balancer PYTHONUNBUFFERED=1
USER balancer
# TERM drains; each container's stop_grace_period has to be longer than its drain timeout.
STOPSIGNAL SIGTERM

FROM programs AS resizer
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9000/health', timeout=2)"]
CMD ["resizer", "--port", "9000", "--bind", "0.0.0.0"]

FROM programs AS balancer
EXPOSE 9090 9091
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["balancerctl", "info"]
CMD ["balancer", "--help"]
