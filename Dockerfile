# howdah in one image: every role is a command of it.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
COPY --from=build /src/target/release/howdah /usr/local/bin/howdah
ENTRYPOINT ["howdah"]
