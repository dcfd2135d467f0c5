# One image for both roles: `longshore storage-node` and `longshore gateway`.
# The bases can be replaced: docker build --build-arg BUILD_BASE=... --build-arg BASE=... .
ARG BUILD_BASE=rust:1.95-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p longshore && strip target/release/longshore

FROM ${BASE}
# The folders belong to the user, so that fresh volumes mounted on them do as well.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /data longshore \
    && mkdir /data /certs \
    && chown longshore:longshore /data /certs
COPY --from=build /src/target/release/longshore /usr/local/bin/longshore
USER longshore
WORKDIR /data
# AMQP, AMQPS, management with metrics and health, storage node gRPC.
EXPOSE 5672 5671 15672 7400
# Both roles serve /health/ready on this port in docker-compose.yml.
HEALTHCHECK --interval=5s --timeout=4s --start-period=20s --retries=6 \
    CMD ["longshore", "health", "http://127.0.0.1:15672/health/ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["longshore"]
CMD ["--help"]
