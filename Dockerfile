# Builds with BuildKit and with the classic builder, so it uses no syntax that only one of them has.
#
#   docker build -t coupon-issuer --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .

# A layer for the dependencies: Docker rebuilds it only when Cargo.toml or Cargo.lock changes. `cargo clean` removes what was built from
# the empty sources. Otherwise cargo would not rebuild: the real sources have older dates.
FROM rust:1.95-slim-bookworm AS dependencies
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --package coupon-issuer

FROM dependencies AS build
COPY migrations migrations
COPY config/default.toml config/demo.toml config/demo_gift_cards.csv config/
COPY src src
ARG REVISION=unknown
ENV COUPON_ISSUER_REVISION=$REVISION
RUN cargo build --release --locked

# The binary links only glibc, libgcc and libm, and needs certificate authorities to fetch the keys of external issuers. This image has
# them. Its glibc must be that of the stage above: change the Debian release in both.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="coupon-issuer" \
      org.opencontainers.image.description="Issues coupons to customers over HTTP, one Postgres transaction per coupon" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /build/target/release/coupon-issuer /usr/local/bin/coupon-issuer
COPY config/production.toml /etc/coupon-issuer/production.toml
ENV COUPON_ISSUER_CONFIG=/etc/coupon-issuer/production.toml
# A number, because Kubernetes (runAsNonRoot) cannot tell whether a name is root.
USER 65532:65532
EXPOSE 8080 9090
# Asks /readyz. Where the orchestrator kills unhealthy containers (Swarm), set COUPON_ISSUER_HEALTHCHECK_URL to
# http://127.0.0.1:8080/healthz: a restart does not help a replica whose database is down.
HEALTHCHECK --interval=5s --timeout=6s --start-period=40s --retries=3 CMD ["/usr/local/bin/coupon-issuer", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/coupon-issuer"]
CMD ["serve"]
