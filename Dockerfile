# `lhydra serve` in a container: what deploy/locks/serve.txt names and our wheel, no compiler, no PyTorch, no pip.
# deploy/kubernetes/README.md says how to run it, and what nobody has tried.
# Only here is a compiler, for the inner loops of requests.
FROM python:3.11 AS build
COPY deploy/locks/build.txt deploy/locks/serve.txt /locks/
RUN python -m venv --without-pip /opt/lhydra \
 && python -m pip install --no-cache-dir --require-hashes --requirement /locks/build.txt \
 && python -m pip --python /opt/lhydra/bin/python install --no-cache-dir --require-hashes --requirement /locks/serve.txt
COPY . /src
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel /src \
 && python -m pip --python /opt/lhydra/bin/python install --no-cache-dir --no-deps /wheel/*.whl

FROM python:3.11-slim
COPY --from=build /opt/lhydra /opt/lhydra
# Listening beyond the container takes --tls-cert and --tls-key, or --insecure: the server says so.
ENV PATH=/opt/lhydra/bin:$PATH LHYDRA_SERVE_HOST=0.0.0.0 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import sys, grpc; from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as rpc; channel = grpc.insecure_channel('127.0.0.1:50051'); sys.exit(rpc.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=4).status != pb.HealthCheckResponse.SERVING)"]
ENTRYPOINT ["lhydra", "serve", "/store"]
