# One image, every program: balancer, balancerctl, resizer, resize-client. Wheels are built apart so that the
# image that runs holds neither pip's cache nor the sources. Runs as nobody in particular; ports are above 1024.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY balancer balancer
COPY workers workers
COPY conf conf
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim
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
CMD ["balancer", "--help"]
