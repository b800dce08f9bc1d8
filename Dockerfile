# The gateway's image: what the two lock files name, and the gateway itself, compiled.
#   docker build -t litellm-sanitizer .
# Any base with Python 3.11 or newer will do. The builder has the same Python, in the same place, and with it venv, gcc
# and Python's headers.
ARG BASE=python:3.13-slim
ARG BUILDER=python:3.13

FROM ${BUILDER} AS build
WORKDIR /build
COPY deploy/image/build.lock deploy/image/requirements.lock ./
# pip, hatchling and mypy stay in an environment of their own, which is left behind with this stage
RUN python3 -m venv tools \
    && tools/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.lock \
    && python3 -m venv --without-pip /opt/litellm-sanitizer \
    && tools/bin/pip --python /opt/litellm-sanitizer/bin/python install \
        --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY LICENSE README.md pyproject.toml ./
COPY deploy/compile.py deploy/compile.py
COPY sanitizer sanitizer
ENV HATCH_BUILD_HOOK_ENABLE_CUSTOM=true
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --check-build-dependencies -w wheel . \
    && tools/bin/pip --python /opt/litellm-sanitizer/bin/python install --no-cache-dir --no-deps wheel/*.whl \
    && tools/bin/pip --python /opt/litellm-sanitizer/bin/python check

FROM ${BASE}
LABEL org.opencontainers.image.title="litellm-sanitizer" \
    org.opencontainers.image.description="A gateway in front of LiteLLM that lets non-admins edit their keys again" \
    org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/litellm-sanitizer /opt/litellm-sanitizer
ENV PATH=/opt/litellm-sanitizer/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    SANITIZER_HOST=0.0.0.0 \
    SANITIZER_ADMIN_HOST=0.0.0.0
# a number, so that Kubernetes can tell that it is not root
USER 65532:65532
EXPOSE 4001 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["/opt/litellm-sanitizer/bin/python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SANITIZER_ADMIN_PORT') or 9464), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["litellm-sanitizer"]
