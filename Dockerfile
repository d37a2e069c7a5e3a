# herenow in an image: one node with everything embedded as it stands, one of many with redis.url and store.url (docker-compose.yml).
FROM rust:1-bookworm AS build
WORKDIR /src

# The dependencies alone, around an empty program: this layer is made anew only when they change.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src benches \
 && touch src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs benches/store.rs >benches/hot.rs \
 && cargo build --release --locked --bin herenow \
 && cargo clean --release --locked --package herenow \
 && rm -r src

COPY migrations migrations
COPY console console
COPY examples examples
COPY src src
# With the lines of a backtrace, but in half the space.
RUN cargo build --release --locked --bin herenow \
 && objcopy --compress-debug-sections=zlib target/release/herenow

FROM debian:bookworm-slim
# Callbacks, Redis and PostgreSQL over TLS are checked against the system's certificates.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin herenow \
 && install --directory --owner=herenow --group=herenow --mode=0700 /var/lib/herenow \
 && install --directory /etc/herenow
COPY --from=build /src/target/release/herenow /usr/local/bin/herenow

USER 10001:10001
# A herenow.toml that is mounted here is found.
WORKDIR /etc/herenow
ENV HERENOW_DATA_DIR=/var/lib/herenow \
    HERENOW_SERVER__LISTEN=0.0.0.0:8080 \
    HERENOW_SERVER__ADMIN_LISTEN=0.0.0.0:9090
VOLUME /var/lib/herenow
EXPOSE 8080 9090
HEALTHCHECK --interval=5s --timeout=6s --start-period=30s --retries=3 CMD ["herenow", "ready"]
ENTRYPOINT ["herenow"]
CMD ["serve"]
