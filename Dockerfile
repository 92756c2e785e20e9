# A server with the module: Redis, or Valkey with --build-arg SERVER=valkey. Both are Debian's.
ARG DEBIAN=trixie

FROM rust:1-slim-$DEBIAN AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libclang-dev
WORKDIR /source
COPY . .
RUN cargo build --locked --profile packaged --package pmcptask --package pmcptask-cli

FROM debian:$DEBIAN-slim
ARG SERVER=redis
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends "$SERVER-server" \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 10001 -g 10001 /data
COPY --from=build /source/target/packaged/libpmcptask.so /usr/lib/redis/modules/
COPY --from=build /source/target/packaged/pmcptask /usr/bin/
COPY redis.conf LICENSE /usr/share/pmcptask/
COPY packaging/image/start packaging/image/healthy /usr/local/bin/

ENV SERVER=$SERVER PORT=6379
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 6379
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["healthy"]
ENTRYPOINT ["start"]
# Whoever reaches the container's network reaches the server; publish its port with care, or set a password.
CMD ["--bind", "*", "-::*", "--protected-mode", "no"]
