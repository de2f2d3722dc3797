# The image of coupon-issuer: the binary, its settings for production, and the libraries that it links. There is no shell and no
# package manager in it. Plain syntax, which BuildKit and the classic builder take alike.
#
#   docker build -t coupon-issuer --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .

# The dependencies, built once for as long as Cargo.lock stays the same: with sources that hold nothing, which are forgotten
# afterwards, since cargo goes by dates and those of the real ones are older.
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

# The binary links glibc, libgcc and libm, nothing else, and trusts the authorities of ca-certificates when it fetches an outside
# issuer's keys: what this image has. Its glibc is that of the stage above: change both together.
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
# By number, so that an orchestrator can tell that it is not root.
USER 65532:65532
EXPOSE 8080 9090
# /readyz, by the binary itself. Where what is unhealthy is killed (Swarm), set COUPON_ISSUER_HEALTHCHECK_URL to
# http://127.0.0.1:8080/healthz: a replica that waits for its database is not cured by a restart.
HEALTHCHECK --interval=5s --timeout=6s --start-period=40s --retries=3 CMD ["/usr/local/bin/coupon-issuer", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/coupon-issuer"]
CMD ["serve"]
